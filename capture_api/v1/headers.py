"""The headers of a v1 request: all that is known about it before its body.

    Authorization there → required headers there → Bearer → token's shape → Content-Type
    → Content-Encoding → PostHog-Request-Id → PostHog-Attempt → PostHog-Request-Timestamp

The order is part of the protocol: it decides which of several faults a client is told.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import msgspec

from capture_api.events.rfc3339 import parse_rfc3339
from capture_api.events.uuids import normal_uuid
from capture_api.refusal import Refused, bad_request
from capture_api.wire.client_software import client_software
from capture_api.wire.inflate import ENCODINGS
from capture_api.wire.payload import valid_token

REQUEST_ID_HEADER = b"posthog-request-id"
SDK_INFO_BYTES = 200
"""A longer PostHog-Sdk-Info names no library."""

REQUIRED = (
    "Content-Type",
    "User-Agent",
    "PostHog-Sdk-Info",
    "PostHog-Attempt",
    "PostHog-Request-Id",
    "PostHog-Request-Timestamp",
)
"""Besides `Authorization`, which is asked for first."""

_REQUIRED = tuple((name, name.lower().encode()) for name in REQUIRED)
_SHOWN_CHARACTERS = 100


class RequestHead(NamedTuple):
    """What the headers say."""

    token: str
    encoding: str  # one of ENCODINGS, or empty
    request_time: int  # the client's clock when it sent this attempt, in µs
    user_agent: str
    sdk: str  # `library/version`, or empty
    library: bytes  # `$lib` and `$lib_version` as members of a JSON object, or empty


def read_headers(headers: dict[bytes, bytes]) -> RequestHead:
    """The head of a request. Refuses (400, 401, 415) what the protocol does not allow."""
    authorization = headers.get(b"authorization")
    if authorization is None:
        raise Refused(
            401,
            "missing_authorization",
            "send the project's token as `Authorization: Bearer phc_…` (`tidemark projects list` "
            "shows it)",
        )
    missing = [name for name, key in _REQUIRED if key not in headers]
    if missing:
        raise bad_request(
            f"request is missing required headers: {', '.join(missing)}", "missing_required_headers"
        )
    token = _token(authorization)
    _check_content_type(headers[b"content-type"])
    encoding = _encoding(headers.get(b"content-encoding", b""))
    request_id = _text(headers[REQUEST_ID_HEADER])
    if normal_uuid(request_id) is None:
        raise _bad_header("PostHog-Request-Id", "a UUID", request_id)
    attempt = _text(headers[b"posthog-attempt"])
    if not (attempt.isascii() and attempt.isdigit() and attempt.strip("0")):
        raise _bad_header("PostHog-Attempt", "a whole number from 1", attempt)
    timestamp = _text(headers[b"posthog-request-timestamp"])
    request_time = parse_rfc3339(timestamp)
    if request_time is None:
        raise _bad_header("PostHog-Request-Timestamp", "an RFC 3339 time", timestamp)
    user_agent, _ = client_software(headers[b"user-agent"])
    sdk, library = _library(headers[b"posthog-sdk-info"])
    return RequestHead(token, encoding, request_time, user_agent, sdk, library)


def _text(header: bytes) -> str:
    return header.decode("latin-1").strip()  # HTTP's own encoding: one byte, one character


def _token(authorization: bytes) -> str:
    scheme, blank, token = _text(authorization).partition(" ")
    if not blank or scheme.lower() != "bearer":
        raise bad_request(
            "invalid header value: Authorization must be `Bearer phc_…`", "invalid_header_value"
        )
    return valid_token(token)


def _check_content_type(header: bytes) -> None:
    if header == b"application/json":  # nearly always
        return
    if header.partition(b";")[0].strip().lower() != b"application/json":
        raise Refused(
            415,
            "unsupported_content_type",
            f"unsupported content type {_shown(_text(header))}: send application/json",
            for_log="unsupported content type: send application/json",
        )


def _encoding(header: bytes) -> str:
    if not header:
        return ""
    encoding = _text(header).lower()
    if encoding in ENCODINGS:
        return encoding
    if encoding in ("", "identity"):
        return ""
    raise Refused(
        415,
        "unsupported_encoding",
        f"unsupported content encoding {_shown(encoding)}: send {', '.join(ENCODINGS)} or none",
        for_log="unsupported content encoding",
    )


@lru_cache(maxsize=1024)
def _library(header: bytes) -> tuple[str, bytes]:
    """The SDK by name, and as the properties it stands for; nothing where it is unusable."""
    name, _, version = _text(header).rpartition("/")
    name, version = name.strip(), version.strip()
    if len(header) > SDK_INFO_BYTES or not name or not version:
        return "", b""
    properties = msgspec.json.encode({"$lib": name, "$lib_version": version})
    return f"{name}/{version}", properties[1:-1]


def _bad_header(name: str, expected: str, value: str) -> Refused:
    what = f"invalid header value: {name} must be {expected}"
    return bad_request(f"{what}, not {_shown(value)}", "invalid_header_value", for_log=what)


def _shown(value: str) -> str:
    return repr(value[:_SHOWN_CHARACTERS])
