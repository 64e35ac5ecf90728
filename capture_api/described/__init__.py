"""The API in OpenAPI's words, for /openapi.json and /docs: every path, answer and example."""
