"""Protocol v1: batches with a result for each event. Tags come from `v1/answers.py`."""

from __future__ import annotations

from capture_api.described.parts import (
    ALLOW,
    RECEIPT,
    RETRY_AFTER,
    UUID_EXAMPLE,
    Json,
    answer,
    obj,
    parameter,
    ref,
    text,
)
from capture_api.v1.answers import DETAILS, ERROR_URI, ERRORS, RETRIED
from capture_api.v1.endpoint import V1_PATHS
from capture_api.wire.inflate import ENCODINGS
from capture_api.wire.payload import MAX_EVENTS

SECURITY_SCHEME = "projectToken"

_TIME = "2026-01-02T03:04:05.678Z"
_OTHER_UUID = "0198a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2c"
_BATCH = {
    "created_at": _TIME,
    "batch": [
        {
            "event": "order placed",
            "uuid": UUID_EXAMPLE,
            "distinct_id": "user-1",
            "timestamp": _TIME,
            "session_id": "0198a1b2-0000-7e5f-8a6b-7c8d9e0f1a2b",
            "options": {"process_person_profile": True},
            "properties": {"total": 12.5},
        }
    ],
}
_TRUTH = "True or false; also as words or numbers."

SCHEMAS: dict[str, Json] = {
    "V1Event": obj(
        {
            "event": text("Its name: 1 to 200 bytes."),
            "uuid": text("Its own; in a batch only once.", format="uuid"),
            "distinct_id": text("Whose it is: 1 to 200 bytes."),
            "timestamp": text("When it happened.", format="date-time"),
            "session_id": {"type": ["string", "null"], "description": "Becomes `$session_id`."},
            "window_id": {"type": ["string", "null"], "description": "Becomes `$window_id`."},
            "options": obj(
                {
                    "cookieless_mode": {"description": _TRUTH},
                    "disable_skew_correction": {"description": _TRUTH},
                    "process_person_profile": {"description": _TRUTH},
                    "product_tour_id": {"description": "A string or a whole number."},
                }
            ),
            "properties": {"type": "object", "description": "Anything."},
        },
        ["event", "uuid", "distinct_id", "timestamp"],
    ),
    "V1Batch": obj(
        {
            "created_at": text(
                "When the batch was made; the same in all tries.", format="date-time"
            ),
            "batch": {
                "type": "array",
                "items": ref("V1Event"),
                "minItems": 1,
                "maxItems": MAX_EVENTS,
            },
            "historical_migration": {
                "type": ["boolean", "null"],
                "description": "An import of old events: they go to a topic of their own.",
            },
            "capture_internal": {
                "type": ["boolean", "null"],
                "description": "Sent by a service of the operator's own: the address is not kept.",
            },
        },
        ["created_at", "batch"],
    ),
    "V1Result": obj(
        {
            "result": {"enum": ["ok", "warning", "drop", "retry"]},
            "details": {
                "enum": sorted(DETAILS),
                "description": "\n".join(
                    f"* `{tag}` ({result}): {meaning}" for tag, (result, meaning) in DETAILS.items()
                ),
            },
        },
        ["result"],
    ),
    "V1Results": obj(
        {
            "results": {
                "type": "object",
                "description": "By the event's uuid, in the order of the batch.",
                "additionalProperties": ref("V1Result"),
            }
        },
        ["results"],
    ),
    "V1Error": obj(
        {
            "error": {"enum": sorted(ERRORS)},
            "error_description": text("What is wrong and what to do, for people."),
            "error_uri": text("Where to read on."),
        },
        ["error", "error_description", "error_uri"],
    ),
}

_ECHO: Json = {
    "PostHog-Request-Id": {"description": "As it was sent, where it was.", "schema": text()}
}
_HEADERS: Json = {**RECEIPT, **_ECHO}

_PARAMETERS: list[Json] = [
    # OpenAPI leaves Content-Type to the body and Authorization to the security scheme.
    parameter("header", "User-Agent", text(), "The client's software.", required=True),
    parameter(
        "header",
        "PostHog-Sdk-Info",
        text(),
        "The SDK as `library/version`: becomes `$lib` and `$lib_version`. Another form is taken, "
        "and says nothing.",
        required=True,
        example="posthog-rs/1.2.3",
    ),
    parameter(
        "header",
        "PostHog-Attempt",
        {"type": "integer", "minimum": 1},
        "Which try this is.",
        required=True,
        example=1,
    ),
    parameter(
        "header",
        "PostHog-Request-Id",
        text(format="uuid"),
        "The same in all tries of a batch; comes back in the answer.",
        required=True,
        example=UUID_EXAMPLE,
    ),
    parameter(
        "header",
        "PostHog-Request-Timestamp",
        text(format="date-time"),
        "The client's clock when it sent this try: by it, wrong clocks are corrected.",
        required=True,
        example=_TIME,
    ),
    parameter(
        "header",
        "Content-Encoding",
        {"enum": [*ENCODINGS, "identity"]},
        "How the body is compressed.",
    ),
]


def _errors() -> Json:
    """The answers other than 200, with the tags that each may have."""
    found: Json = {}
    for status in sorted({status for status, _ in ERRORS.values()}):
        tags = {tag: meaning for tag, (s, meaning) in ERRORS.items() if s == status}
        headers = dict(_HEADERS)
        if status in RETRIED or status == 429:
            headers |= RETRY_AFTER
        if status == 405:
            headers |= ALLOW
        found[str(status)] = answer(
            "\n".join(f"* `{tag}`: {meaning}" for tag, meaning in tags.items()),
            ref("V1Error"),
            {
                tag: {"error": tag, "error_description": meaning, "error_uri": ERROR_URI}
                for tag, meaning in tags.items()
            },
            headers,
        )
    return found


_RESPONSES: Json = {
    "200": answer(
        "What became of each event. `ok`: Kafka has it, on all in-sync replicas. `warning`: the "
        "same, with a reservation. `drop`: not kept, and sending it again would not help. "
        "`retry`: not kept for certain, send it again (with Retry-After).",
        ref("V1Results"),
        {
            "accepted": {"results": {UUID_EXAMPLE: {"result": "ok"}}},
            "in part": {
                "results": {
                    UUID_EXAMPLE: {"result": "drop", "details": "missing_distinct_id"},
                    _OTHER_UUID: {"result": "retry", "details": "not_persisted"},
                }
            },
        },
        {
            **_HEADERS,
            "Retry-After": {
                "description": "Seconds; where an event is to be sent again.",
                "schema": {"type": "integer", "minimum": 1},
            },
        },
    ),
    **_errors(),
}

_ABOUT = (
    'What `posthog` SDKs send with `capture_mode="v1"`. Each event has its own result, and only '
    "those with `retry` are sent again. Both paths take all events. Each is also served with a "
    "slash at its end."
)


def paths() -> dict[str, Json]:
    """The descriptions, by path."""
    return {path: {"post": _operation(path)} for path in V1_PATHS}


def _operation(path: str) -> Json:
    return {
        "operationId": "post-" + path.strip("/").replace("/", "-"),
        "tags": ["protocol v1"],
        "summary": f"Send a batch of events to {path}",
        "description": _ABOUT,
        "security": [{SECURITY_SCHEME: []}],
        "parameters": _PARAMETERS,
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": ref("V1Batch"),
                    "examples": {"batch": {"value": _BATCH}},
                }
            },
        },
        "responses": _RESPONSES,
    }
