"""What the descriptions of paths are made of: JSON as OpenAPI has it, in few words."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

UUID_EXAMPLE = "0198a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
TOKEN_EXAMPLE = "phc_4nMqVXQhgW3qzNqnV5aCtRxwwkWxGdYB"


def ref(name: str) -> Json:
    """A reference to a schema that is declared once."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(properties: Json, required: list[str] | None = None, **more: Any) -> Json:
    """The schema of an object."""
    schema: Json = {"type": "object", "properties": properties, **more}
    return {**schema, "required": required} if required else schema


def text(description: str = "", **more: Any) -> Json:
    """The schema of a string."""
    return {"type": "string", **({"description": description} if description else {}), **more}


def parameter(place: str, name: str, schema: Json, description: str, **more: Any) -> Json:
    """A parameter in the query, the path or the headers."""
    return {"in": place, "name": name, "schema": schema, "description": description, **more}


def json_content(schema: Json, examples: Json | None = None) -> Json:
    """A JSON body with examples by name."""
    content: Json = {"schema": schema}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"application/json": content}


def answer(
    description: str,
    schema: Json | None = None,
    examples: Json | None = None,
    headers: Json | None = None,
) -> Json:
    """One answer of a path."""
    found: Json = {"description": description}
    if headers:
        found["headers"] = headers
    if schema is not None:
        found["content"] = json_content(schema, examples)
    return found


RECEIPT: Json = {
    "X-Request-Id": {
        "description": "The receipt: column `request_id` of the rows.",
        "schema": text(format="uuid"),
        "required": True,
    }
}
RETRY_AFTER: Json = {
    "Retry-After": {
        "description": "Seconds after which the same request is worth a try.",
        "schema": {"type": "integer", "minimum": 1},
        "required": True,
    }
}
ALLOW: Json = {
    "Allow": {
        "description": "The methods that the path has.",
        "schema": text(),
        "required": True,
    }
}

SCHEMAS: dict[str, Json] = {
    "Ok": obj({"status": {"const": "Ok"}}, ["status"]),
    "Refusal": obj(
        {
            "code": text("What is wrong, for programs."),
            "detail": text("What is wrong and what to do, for people."),
        },
        ["code", "detail"],
    ),
}
"""Schemas that several paths share."""


def refusal(description: str, code: str, detail: str, headers: Json | None = None) -> Json:
    """A refusal in the form that all paths but those of protocol v1 have."""
    return answer(description, ref("Refusal"), {code: {"code": code, "detail": detail}}, headers)


WRONG_METHOD = refusal(
    "The path does not have this method.", "wrong_method", "send events with POST", ALLOW
)
