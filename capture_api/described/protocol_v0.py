"""Protocol v0: the paths that SDKs of all generations send to, all served alike."""

from __future__ import annotations

from capture_api.described.parts import (
    RECEIPT,
    RETRY_AFTER,
    TOKEN_EXAMPLE,
    UUID_EXAMPLE,
    WRONG_METHOD,
    Json,
    answer,
    obj,
    parameter,
    ref,
    refusal,
    text,
)
from capture_api.ingest import INGEST_PATHS

_TIME = "2026-01-02T03:04:05.678Z"
_ANYTHING: Json = {}
_SINGLE = {
    "api_key": TOKEN_EXAMPLE,
    "event": "order placed",
    "distinct_id": "user-1",
    "timestamp": _TIME,
    "properties": {"total": 12.5},
}
_BATCH = {
    "api_key": TOKEN_EXAMPLE,
    "sent_at": _TIME,
    "batch": [
        {"event": "order placed", "distinct_id": "user-1", "properties": {"total": 12.5}},
        {"event": "$identify", "distinct_id": "user-1", "$set": {"plan": "free"}},
    ],
}
_ARRAY = [{**_SINGLE, "uuid": UUID_EXAMPLE}]

_EVENT: Json = obj(
    {
        "event": text("Its name.", minLength=1),
        "distinct_id": {"description": "Whose it is; else `properties.distinct_id`."},
        "uuid": text("Its own; minted where there is none.", format="uuid"),
        "timestamp": text("When it happened; ISO 8601 and other usual forms."),
        "offset": {"type": "number", "description": "Its age in ms when it was sent; wins."},
        "properties": {"type": "object", "description": "Anything."},
        "$set": {"type": "object", "description": "Properties of the person."},
        "$set_once": {"type": "object", "description": "The same, where there is none yet."},
        "api_key": text("The project's token; also `token`, or `properties.token`."),
    },
    ["event"],
)
_BATCH_OF_EVENTS: Json = obj(
    {
        "api_key": text("The project's token; also `token`."),
        "batch": {"type": "array", "items": ref("Event"), "minItems": 1},
        "sent_at": text("The client's clock when it sent this; ISO 8601 with a zone."),
        "historical_migration": {
            "type": "boolean",
            "description": "An import of old events: they go to a topic of their own.",
        },
    },
    ["api_key", "batch"],
)

SCHEMAS: dict[str, Json] = {
    "Event": _EVENT,
    "Batch": _BATCH_OF_EVENTS,
    "Accepted": obj(
        {
            "status": {"const": "Ok"},
            "quota_limited": {
                "type": "array",
                "items": text(),
                "description": "Kinds of data that the project has sent enough of for today.",
            },
            "detail": text(),
            "rejected": {
                "type": "array",
                "description": "Events that were left out because they are too large.",
                "items": obj(
                    {
                        "index": {"type": "integer", "minimum": 0},
                        "uuid": text(format="uuid"),
                        "code": text(),
                        "detail": text(),
                    },
                    ["index", "uuid", "code", "detail"],
                ),
            },
        },
        ["status"],
    ),
}

_PARAMETERS: list[Json] = [
    parameter(
        "query",
        "compression",
        text(),
        "How the body is packed: `gzip` or `gzip-js`, `lz64`, `base64`. Anything else is passed "
        "over; gzip and base64 show by themselves.",
        example="gzip-js",
    ),
    parameter("query", "_", text(), "The client's clock when it sent this, in ms since 1970."),
    parameter("query", "sent_at", text(), "The same as `_`."),
    parameter("query", "beacon", text(), "`1`: answer 204 without a body.", example="1"),
    parameter("query", "retry_count", text(), "Which try this is; not used."),
    parameter("query", "ver", text(), "Version of the SDK; not used."),
    parameter("query", "ip", text(), "Not used."),
    parameter(
        "header",
        "Content-Encoding",
        text(),
        "`gzip`, or `lz64`: how the body is packed. Anything else is passed over.",
    ),
]
_DATA = parameter("query", "data", text(), "The payload, in place of a body; may be base64.")

_REQUEST_BODY: Json = {
    "description": "One event, an array of events, or a batch. `Content-Type` is not asked for.",
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [ref("Batch"), ref("Event"), {"type": "array", "items": ref("Event")}]
            },
            "examples": {
                "batch": {"value": _BATCH},
                "one event": {"value": _SINGLE},
                "array": {"value": _ARRAY},
            },
        },
        "text/plain": {
            "schema": text("The same as JSON, or gzip of it: what browsers send unasked."),
        },
        "application/x-www-form-urlencoded": {
            "schema": obj(
                {
                    "data": text("The same as JSON, mostly in base64."),
                    "compression": text("As in the query."),
                },
                ["data"],
            ),
        },
    },
}


def _bad(code: str, detail: str, description: str) -> Json:
    return refusal(description, code, detail, RECEIPT)


_RESPONSES: Json = {
    "200": answer(
        "Kafka has every event, on all in-sync replicas; or those that are missing are named.",
        ref("Accepted"),
        {
            "accepted": {"status": "Ok"},
            "too large": {
                "status": "Ok",
                "rejected": [
                    {
                        "index": 1,
                        "uuid": UUID_EXAMPLE,
                        "code": "too_large",
                        "detail": "maximum event size exceeded: …",
                    }
                ],
            },
            "over quota": {
                "status": "Ok",
                "quota_limited": ["events"],
                "detail": "the project has sent its events of today (UTC): these are not kept",
            },
        },
        RECEIPT,
    ),
    "204": {"description": "The same, for `beacon=1`.", "headers": RECEIPT},
    "400": _bad(
        "missing_distinct_id",
        "event 3: event submitted without a distinct_id",
        "The request cannot be read, or an event in it breaks a rule; nothing of it is kept.",
    ),
    "401": _bad(
        "missing_token",
        "event submitted without an api_key: send the project's token as `api_key`",
        "There is no token, or no project has it.",
    ),
    "405": WRONG_METHOD,
    "408": _bad("body_stalled", "the body came too slowly: …", "The body stopped coming."),
    "413": _bad(
        "too_large",
        "maximum event size exceeded: the body has more than 20971520 bytes; …",
        "The body, or its one event, is too large.",
    ),
    "429": refusal(
        "The project or the address sends too much. Beyond a project's limit each request is told "
        "when its turn comes, 30 s at the most.",
        "rate_limited",
        "too many events of this project: at most 100 events a second; send them again in 2 s",
        {**RECEIPT, **RETRY_AFTER},
    ),
    "500": _bad("internal_error", "internal error; report the receipt …", "A bug."),
    "503": refusal(
        "Kafka has not acknowledged, or the server is overloaded: the same request may be sent "
        "again, and an event that has a uuid is stored once.",
        "not_acknowledged",
        "transient error, please retry: Kafka did not acknowledge (…)",
        {**RECEIPT, **RETRY_AFTER},
    ),
}

_ABOUT = (
    "All paths of protocol v0 take the same requests. A request is one unit: 200 only after Kafka "
    "has acknowledged all of its events. Each path is also served with a slash at its end."
)


def paths() -> dict[str, Json]:
    """The descriptions, by path."""
    return {path: _operations(path) for path in INGEST_PATHS}


def _operations(path: str) -> Json:
    name = path.strip("/").replace("/", "-")
    shared = {"tags": ["protocol v0"], "description": _ABOUT, "responses": _RESPONSES}
    return {
        "post": {
            "operationId": f"post-{name}",
            "summary": f"Send events to {path}",
            "parameters": [*_PARAMETERS, _DATA],
            "requestBody": _REQUEST_BODY,
            **shared,
        },
        "get": {
            "operationId": f"get-{name}",
            "summary": f"Send events to {path} in the query",
            "parameters": [*_PARAMETERS, {**_DATA, "required": True}],
            **shared,
        },
    }
