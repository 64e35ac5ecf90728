"""Answers of protocol v1: a result for each event, or one error for the whole request.

    200    {"results": {"<uuid>": {"result": "ok", "details": …}, …}}
    other  {"error": tag, "error_description": text, "error_uri": page}

The tags are declared here with their status and meaning; the API's description is made from them.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from capture_api.answers import Answer, HeaderList, json_answer
from capture_api.refusal import Refused
from capture_api.turns import AT_ONCE_EVENTS, pause
from capture_api.v1.events import Result
from capture_api.wire.inflate import ENCODINGS

ERROR_URI = "/docs"
"""Where this server describes its protocols."""

RETRY_AFTER_SECONDS = 1

ERRORS: dict[str, tuple[int, str]] = {
    "missing_required_headers": (400, "Headers are missing; the text names them all."),
    "invalid_header_value": (400, "A header has a value that it cannot have."),
    "empty_body": (400, "There is no body, or nothing in it."),
    "request_decoding_error": (400, "The body is not what Content-Encoding says."),
    "request_parsing_error": (400, "The body is no JSON in UTF-8, or not of the batch's shape."),
    "empty_batch": (400, "The batch has no events."),
    "invalid_batch": (400, "`created_at` is not an RFC 3339 time."),
    "missing_event_uuid": (400, "An event has an empty uuid."),
    "invalid_event_uuid": (400, "An event's uuid is not a UUID."),
    "duplicate_event_uuid": (400, "Two events of the batch have the same uuid."),
    "missing_authorization": (401, "There is no Authorization header."),
    "invalid_api_token": (401, "The token is malformed, or no project has it."),
    "billing_limit_exceeded": (402, "The project's quota is used up."),
    "method_not_allowed": (405, "Events are sent with POST."),
    "body_read_timeout": (408, "The body came too slowly, or stopped coming."),
    "payload_too_large": (413, "The body is too large, before or after it is decompressed."),
    "unsupported_content_type": (415, "Content-Type is not application/json."),
    "unsupported_encoding": (415, f"Content-Encoding is none of {', '.join(ENCODINGS)}."),
    "rate_limited": (429, "The project or the address sends too much."),
    "internal_error": (500, "A bug: report the receipt."),
    "service_unavailable": (503, "Kafka cannot acknowledge now, or the server is overloaded."),
}
"""Every error by its tag: its status and meaning."""

RETRIED = frozenset({408, 500, 503, 504})
"""Statuses after which an SDK sends the same batch again."""

DETAILS: dict[str, tuple[str, str]] = {
    "dropped_performance_event": ("drop", "The event is named `$performance_event`."),
    "missing_event_name": ("drop", "The name is empty."),
    "event_name_too_long": ("drop", "The name has more than 200 bytes."),
    "missing_distinct_id": ("drop", "The distinct_id is empty."),
    "distinct_id_too_large": ("drop", "The distinct_id has more than 200 bytes."),
    "invalid_event_timestamp": ("drop", "The timestamp is not an RFC 3339 time."),
    "malformed_event_properties": (
        "drop",
        "`properties` is not an object, nests too deeply, or has a number out of range.",
    ),
    "invalid_options": ("drop", "An option cannot be what it should be."),
    "event_too_big": ("drop", "The event makes a record that Kafka does not take."),
    "billing_limit_exceeded": ("drop", "The project's quota is used up."),
    "event_restriction_drop": ("drop", "A rule of the project drops it."),
    "person_processing_disabled": ("warning", "Kept, but no person is made of it."),
    "not_persisted": ("retry", "Kafka has not acknowledged it: send it again."),
}
"""Every detail of an event's result: the result it comes with, and its meaning."""

_TAG_OF_STATUS = {
    400: "request_decoding_error",
    401: "invalid_api_token",
    402: "billing_limit_exceeded",
    408: "body_read_timeout",
    413: "payload_too_large",
    429: "rate_limited",
    503: "service_unavailable",
}
"""For refusals by code that both protocols share."""

_JSON = (b"content-type", b"application/json")
_RETRY_AFTER = (b"retry-after", str(RETRY_AFTER_SECONDS).encode())


def results_answer(spellings: list[str], uuids: list[str], results: list[Result]) -> Answer:
    """The 200. A uuid that the client spelled in an unusual way has its result under both.

    Clients look a result up by their own spelling, or by the usual one: found under neither, an
    event to be sent again would be taken for accepted.
    """
    members = []
    for index, (spelling, uuid, result) in enumerate(zip(spellings, uuids, results, strict=True)):
        if index % AT_ONCE_EVENTS == AT_ONCE_EVENTS - 1:
            pause()
        encoded = _encoded(result)
        members.append(b'"%b":%b' % (uuid.encode(), encoded))
        if spelling != uuid:
            members.append(b"%b:%b" % (msgspec.json.encode(spelling), encoded))
    body = b'{"results":{%b}}' % b",".join(members)
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    if any(result.result == "retry" for result in results):
        headers.append(_RETRY_AFTER)
    return Answer(200, headers, body)


def error_answer(refused: Refused) -> Answer:
    """The error that stands for a refusal."""
    tag = refused.code
    if tag not in ERRORS:
        tag = _TAG_OF_STATUS.get(refused.status, "internal_error")
    status = ERRORS[tag][0]
    headers: HeaderList = []
    if status in RETRIED:
        headers.append(_RETRY_AFTER)
    elif refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    if status == 408:  # the rest of the body must not trickle in for ever
        headers.append((b"connection", b"close"))
    elif status == 405:
        headers.append((b"allow", b"POST, OPTIONS"))
    elif tag == "unsupported_encoding":
        headers.append((b"accept-encoding", ", ".join(ENCODINGS).encode()))
    elif tag == "unsupported_content_type":
        headers.append((b"accept", b"application/json"))
    content = {"error": tag, "error_description": refused.detail, "error_uri": ERROR_URI}
    return json_answer(status, content, headers)


@lru_cache(maxsize=256)
def _encoded(result: Result) -> bytes:
    if not result.details:
        return msgspec.json.encode({"result": result.result})
    return msgspec.json.encode({"result": result.result, "details": result.details})
