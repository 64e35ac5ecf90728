"""uvicorn's HTTP/1.1 protocol, made to stand in the open: what it bounds, and what it mends.

    bytes ──▶ parser ──▶ request ──▶ answer ──▶ next request
      │ head: bytes and time      │ after an early answer: the rest of the body is read and
      │ silence: time             │ forgotten, up to a limit of bytes and time
      └ too many connections: 503 └ answers that nobody reads: time

Times are kept by one sweep over all connections (`connections.py`), not by timers. Invariants: a
connection holds at most MAX_HEAD_BYTES and one read from the socket without progress of the
parser; what follows a request on the connection never changes the answer to it; a request that is
on its way while the server shuts down is served.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from capture_api.answers import (
    Answer,
    Receive,
    Scope,
    Send,
    cors_headers,
    refusal_answer,
    send_answer,
)
from capture_api.refusal import Refused, bad_request, try_later
from capture_api.wire.connections import ENDED, SURPLUS_CONNECTIONS, Sweep
from capture_api.wire.quick_cycle import QuickCycle

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers, or trailers, that a client may send without completing them."""

SHORT_URL_BYTES = 64
"""Up to this, a URL is remembered with its parts: SDKs send the same few all the time."""

LEAVE_SECONDS = 1.0
"""An idle connection stays open so long at shutdown, for a request that is already on its way."""

_CLOSE = (b"connection", b"close")

_SILENT = "silent"
_HEAD = "slow_head"
_IDLE = "idle"
_DRAIN = "slow_refused_body"
_UNREAD = "unread_answers"
_TOO_MANY = "too_many"
_LARGE_HEAD = "large_head"
_LARGE_REFUSED = "large_refused_body"
"""What a connection may be at, and why it is ended."""


class At(NamedTuple):
    """What a connection is at while the server waits for the client."""

    what: str
    scope: object  # of the last request; the same object as long as there is no next one
    unread: int = 0  # bytes of answers


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _without_progress = 0
    _drained = 0
    _leaving = False
    _was_at: At | None = None
    _since = 0.0

    def __init__(self, *uvicorns: Any, sweep: Sweep, **and_named: Any) -> None:
        super().__init__(*uvicorns, **and_named)
        self._sweep = sweep
        self._limits = sweep.limits

    def connection_made(self, transport: Any) -> None:
        """A client has connected; one that is too many is told so, or cut off."""
        super().connection_made(transport)
        self._sweep.watch(self.loop, self.connections)
        surplus = len(self.connections) - self._limits.connections
        if surplus > 0:
            ENDED[_TOO_MANY] += 1
            self.app = _no_room
            if surplus > SURPLUS_CONNECTIONS:
                transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes came; refuse (431) and hang up when they lead to nothing."""
        self._without_progress += len(data)
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # To another protocol: declined, and the request is served like any other.
                if self.parser.get_method() != b"CONNECT":
                    data = self._head_without_upgrade() + data[upgrade.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    continue
                self._refuse_bytes(bad_request("CONNECT is not served here", "bad_http"))
            except httptools.HttpParserError as error:
                self._refuse_bytes(bad_request(f"this is not HTTP: {error}", "bad_http"))
            break
        cycle = self.cycle
        if isinstance(cycle, QuickCycle) and cycle.parts is not None and not self.pipeline:
            cycle.start(self.app)  # the rest of its body comes later
        if self._without_progress > MAX_HEAD_BYTES and not self.transport.is_closing():
            ENDED[_LARGE_HEAD] += 1
            self._refuse_bytes(
                Refused(431, "head_too_large", f"the headers have more than {MAX_HEAD_BYTES} bytes")
            )

    def on_headers_complete(self) -> None:
        """The parser has a whole head."""
        self._without_progress = 0
        parser = self.parser
        if parser.should_upgrade():
            return  # it comes again without
        if self.expect_100_continue:
            super().on_headers_complete()
        else:
            version = parser.get_http_version()
            scope = self.scope
            scope["method"] = parser.get_method().decode("ascii")
            scope["http_version"] = version
            url = self.url
            split = split_url if len(url) > SHORT_URL_BYTES else _split_short_url
            scope["path"], scope["raw_path"], scope["query_string"] = split(url)
            previous = self.cycle
            self.cycle = QuickCycle(self, version != "1.0" and parser.should_keep_alive())
            if previous is not None and not previous.response_complete:
                self.flow.pause_reading()
                self.pipeline.appendleft((self.cycle, self.app))
        if self._leaving:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """The parser has bytes of a body."""
        self._without_progress = 0
        self.expect_100_continue = False  # it does not wait
        cycle = self.cycle
        if cycle.response_complete:
            self._drained += len(body)
            if self._drained > self._limits.drain_bytes and not self.transport.is_closing():
                ENDED[_LARGE_REFUSED] += 1
                self.transport.close()
        elif isinstance(cycle, QuickCycle) and cycle.parts is not None:
            cycle.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser is at the end of a message."""
        self._without_progress = 0
        if self.parser.should_upgrade():
            return
        cycle = self.cycle
        if isinstance(cycle, QuickCycle) and cycle.parts is not None:
            cycle.more_body = False
            if not self.pipeline:
                cycle.start(self.app)
            return
        super().on_message_complete()
        cycle.more_body = False  # also of one that is answered already
        if self.app is _no_room and self.cycle.response_complete:
            self.transport.close()

    def on_response_complete(self) -> None:
        """An answer is written: on with the next request, or with the rest of this one's body."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._drained = 0
        if self.pipeline:
            # Not read on: a client that sends without waiting must not fill the memory.
            cycle, app = self.pipeline.pop()
            if isinstance(cycle, QuickCycle):
                cycle.start(app)
            else:
                self._start_asgi_task(cycle, app)
            return
        self.flow.resume_reading()
        if self.expect_100_continue and self.cycle.more_body:
            # Refused before it was told to go on: whether the body comes nobody knows, so nothing
            # after this can be understood.
            self.transport.close()
        elif self.app is _no_room and not self.cycle.more_body:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own refusal, in the API's form."""
        self._refuse_bytes(bad_request(msg, "bad_http"))

    def shutdown(self) -> None:
        """The server is about to end: answer what is on its way, then close."""
        self._leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LEAVE_SECONDS, self._leave)
        else:
            self.cycle.keep_alive = False

    def sweep(self, now: float) -> None:
        """Cut off a connection that has been at the same thing for too long."""
        at = self._at()
        was_at = self._was_at
        if (
            at is None
            or was_at is None
            or at.what is not was_at.what
            or at.scope is not was_at.scope
            or at.unread != was_at.unread
        ):
            self._was_at, self._since = at, now
            return
        what = at.what
        if what in (_SILENT, _HEAD):
            patience = self._limits.head_seconds
        else:
            patience = self._limits.idle_seconds if what is _IDLE else self._limits.stall_seconds
        if now - self._since < patience:
            return
        if what is not _IDLE:
            ENDED[what] += 1
        if what is _HEAD:
            text = f"the headers are not complete after {patience:g} s: send the request again"
            self._refuse_bytes(Refused(408, "head_stalled", text))
        elif what is _UNREAD:
            self.transport.abort()
        else:
            self.transport.close()

    def _at(self) -> At | None:
        """What the connection is at; None while the server is at work."""
        unread = self.transport.get_write_buffer_size()
        if unread:
            return At(_UNREAD, self.scope, unread)
        if self.transport.is_closing():
            return None
        cycle = self.cycle
        if self.scope is None:
            return At(_SILENT, None)
        if cycle is None or self.scope is not cycle.scope:  # the parser is in another head
            return At(_HEAD, self.scope) if cycle is None or cycle.response_complete else None
        if not cycle.response_complete:
            return None  # a body has its own deadline, Kafka has another
        return At(_DRAIN if cycle.more_body else _IDLE, self.scope)

    def _leave(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _head_without_upgrade(self) -> bytes:
        """The head that the parser has just read, without what asks for another protocol."""
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        lines += (b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade")
        return b"\r\n".join([*lines, b"", b""])

    def _refuse_bytes(self, refused: Refused) -> None:
        """Answer bytes that are no request, and close; but never in the place of another answer."""
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            if not self.transport.is_closing():
                self.transport.write(self._in_bytes(refusal_answer(refused)))
            self.transport.close()
        elif not cycle.more_body:  # they follow a good request, which is answered first
            cycle.keep_alive = False
            self.flow.pause_reading()
        elif self.pipeline:  # they are in the body of one that waits for its turn
            self.pipeline[0] = cycle, partial(_refuse, refused)
            cycle.keep_alive = False
            self.flow.pause_reading()
        else:  # they are in the body of the one at work, or of one that is refused already
            if not cycle.response_started and not self.transport.is_closing():
                self.transport.write(self._in_bytes(refusal_answer(refused)))
            self.transport.close()

    def _in_bytes(self, answer: Answer) -> bytes:
        headers = [*self.server_state.default_headers, *answer.headers]
        headers += cors_headers(dict(self.headers or ()))
        if _CLOSE not in headers:
            headers.append(_CLOSE)
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return STATUS_LINE[answer.status] + lines + b"\r\n" + answer.body


def split_url(url: bytes) -> tuple[str, bytes, bytes]:
    """The path, the path as it was sent, and the query string."""
    parsed = httptools.parse_url(url)
    raw_path = parsed.path
    path = raw_path.decode("ascii")
    return unquote(path) if "%" in path else path, raw_path, parsed.query or b""


_split_short_url = lru_cache(1024)(split_url)


async def _refuse(refused: Refused, scope: Scope, _: Receive, send: Send) -> None:
    """An application that refuses."""
    await send_answer(send, refusal_answer(refused), cors_headers(dict(scope["headers"])))


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    """The application for connections over the limit."""
    text = "the server has as many connections as it may: send the request again in a moment"
    await _refuse(try_later("too_many_connections", text), scope, receive, send)
