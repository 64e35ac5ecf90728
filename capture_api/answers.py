"""Answers: JSON bodies, the receipt, and the CORS headers that every answer carries.

A browser sees an answer without CORS headers as a broken network and loses its events after a
few tries, so refusals carry them just as acceptances do. Origins are mirrored: tokens are public
and the API only takes data in, so there is nothing a foreign page could steal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from capture_api.events.refused import RefusedEvent
from capture_api.refusal import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]

RECEIPT_HEADER = b"x-request-id"

_JSON = (b"content-type", b"application/json")
_OK_BODY = b'{"status":"Ok"}'
_OK_HEADERS: HeaderList = [_JSON, (b"content-length", str(len(_OK_BODY)).encode())]

_METHODS = b"GET, POST, OPTIONS"
_MAX_AGE = (b"access-control-max-age", b"86400")
_CREDENTIALS = (b"access-control-allow-credentials", b"true")
_EXPOSED = (
    b"access-control-expose-headers",
    b"X-Request-Id, PostHog-Request-Id, Retry-After, Date",
)
_VARY = (b"vary", b"Origin")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over HTTP, before CORS headers and receipt."""

    status: int
    headers: HeaderList
    body: bytes


ACCEPTED = Answer(200, _OK_HEADERS, _OK_BODY)
ACCEPTED_BEACON = Answer(204, [], b"")


def json_answer(status: int, content: object, headers: HeaderList | None = None) -> Answer:
    """An answer with a JSON body."""
    body = msgspec.json.encode(content)
    length = (b"content-length", str(len(body)).encode())
    return Answer(status, [_JSON, length, *(headers or [])], body)


OVER_QUOTA = json_answer(
    200,
    {
        "status": "Ok",
        "quota_limited": ["events"],
        "detail": "the project has sent its events of today (UTC): these are not kept",
    },
)
"""As PostHog answers, so that SDKs go on without sending again; browsers pause for a minute."""


def text_answer(content: str, media_type: str = "text/plain; charset=utf-8") -> Answer:
    """A 200 that is not JSON: a script or a line for people."""
    body = content.encode()
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    return Answer(200, headers, body)


def refusal_answer(refused: Refused) -> Answer:
    """A refusal; SDKs read the text from `detail`."""
    headers: HeaderList = []
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    if refused.status == 408:  # the rest of the body must not trickle in for ever
        headers.append((b"connection", b"close"))
    if refused.status == 405:
        headers.append((b"allow", b"GET, POST, OPTIONS"))
    return json_answer(refused.status, {"code": refused.code, "detail": refused.detail}, headers)


def left_out_answer(left_out: Sequence[RefusedEvent]) -> Answer:
    """An acceptance of all events but these."""
    return json_answer(200, {"status": "Ok", "rejected": left_out})


def as_response(answer: Answer) -> Response:
    """The answer in FastAPI's form."""
    names = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
    return Response(answer.body, answer.status, names)


def cors_headers(request_headers: dict[bytes, bytes], methods: bytes = _METHODS) -> HeaderList:
    """The CORS headers for an answer to a request with these headers; none outside a browser."""
    origin = request_headers.get(b"origin")
    if origin is None:
        return []
    headers = [(b"access-control-allow-origin", origin), _CREDENTIALS, _EXPOSED, _VARY]
    if b"access-control-request-method" in request_headers:
        headers += ((b"access-control-allow-methods", methods), _MAX_AGE)
        wanted = request_headers.get(b"access-control-request-headers")
        if wanted:
            headers.append((b"access-control-allow-headers", wanted))
    return headers


async def send_answer(send: Send, answer: Answer, extra: HeaderList) -> None:
    """Put the answer on the wire with the extra headers."""
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": answer.headers + extra,
        }
    )
    await send({"type": "http.response.body", "body": answer.body})


def with_headers(send: Send, extra: HeaderList) -> Send:
    """A `send` that adds the headers to whatever answer passes through it."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return sending
