"""The OpenAPI document of the capture API, put together from what each module describes."""

from __future__ import annotations

from importlib.metadata import version

from capture_api.described import others, parts, protocol_v0, protocol_v1
from capture_api.described.parts import Json

TITLE = "Tidemark capture API"

_ABOUT = """\
Takes product-analytics events in and acknowledges them once Kafka has them.

PostHog's SDKs, old and new, work with their host setting alone. Protocol v0 is what all of them
speak: the token is in the body, and a request is one unit. Protocol v1 is what newer ones can be
told to speak: the token is in a header, and each event has its own result.

Every answer has CORS headers for any origin, `Date`, and on capture paths the receipt
`X-Request-Id`. `OPTIONS` is answered 200 on every path.
"""
_TAGS = {
    "protocol v0": "Events, as all SDKs send them.",
    "protocol v1": "Events with a result for each.",
    "stubs for SDKs": "What SDKs ask for besides, answered with nothing in the form they expect.",
    "not served": "What SDKs would send that is not taken in.",
    "health": "For load balancers, Prometheus and people.",
}


def openapi_document() -> Json:
    """The document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version("tidemark"), "description": _ABOUT},
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": {**protocol_v0.paths(), **protocol_v1.paths(), **others.paths()},
        "components": {
            "schemas": {
                name: schema
                for module in (parts, protocol_v0, protocol_v1, others)
                for name, schema in module.SCHEMAS.items()
            },
            "securitySchemes": {
                protocol_v1.SECURITY_SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The project's token (`tidemark projects list` shows it).",
                }
            },
        },
    }
