"""A request and its answer over uvicorn's protocol, at a third of what uvicorn's own costs.

uvicorn starts a task at the end of a head, wakes it for the body, and writes an answer in two
pieces. But nearly every request arrives whole with one read, and is answered whole:

    head ─▶ body, as far as it came with the same read ─▶ task ─▶ one write of head and body

Everything else (a body in pieces, a stream, HEAD, a client that hangs up) is left to uvicorn's
cycle, from which this one inherits. Invariant: the application cannot tell the two apart.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

if TYPE_CHECKING:
    from capture_api.wire.http_protocol import BoundedHttpProtocol

_NO_BODY = frozenset({204, 304})
_NO_HEADERS: list[tuple[bytes, bytes]] = []


class QuickCycle(RequestResponseCycle):
    """One request and its answer. The protocol fills `parts` and then calls `start`."""

    # What uvicorn sets for each request, where it is the same for nearly all.
    access_log = False
    waiting_for_100_continue = False
    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding = None
    expected_content_length = 0
    body: Any = b""  # before the start
    parts: list[bytes] | None = None  # of the body, until the task starts
    _task: asyncio.Task[None]
    _whole: bytes | None = None  # the body, when it is complete at the start
    _head: dict[str, Any] | None = None  # of the answer, until there is a body to go with it

    def __init__(self, protocol: BoundedHttpProtocol, keep_alive: bool) -> None:
        # uvicorn's own is left out on purpose: it is a good part of the cost.
        self.protocol = protocol
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.keep_alive = keep_alive
        self.on_response = protocol.on_response_complete
        self.parts = []

    @cached_property
    def logger(self) -> Any:  # type: ignore[override]
        """Where uvicorn's cycle tells of an application that fails."""
        return self.protocol.logger

    @cached_property
    def default_headers(self) -> Any:  # type: ignore[override]
        """The server's own headers."""
        return self.protocol.server_state.default_headers

    @cached_property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """uvicorn's sign that there is something to receive; made only where somebody waits."""
        event = asyncio.Event()
        if self.body:
            event.set()
        return event

    def start(self, app: Any) -> None:
        """Hand the request over, with as much of its body as has come."""
        assert self.parts is not None
        body = b"".join(self.parts)
        self.parts = None
        if self.more_body:
            self.body = bytearray(body)
        else:
            self._whole = body
            self.body = bytearray()
        protocol = self.protocol
        self._task = protocol.loop.create_task(self._run(app))
        protocol.tasks.add(self._task)

    async def _run(self, app: Any) -> None:
        try:
            await self.run_asgi(app)
        finally:
            self.protocol.tasks.discard(self._task)
            del self._task  # each would keep the other

    async def receive(self) -> Any:
        """The next part of the body, or that the client has gone."""
        whole = self._whole
        if whole is None or self.disconnected or self.response_complete:
            return await super().receive()
        self._whole = None
        return {"type": "http.request", "body": whole, "more_body": False}

    async def send(self, message: Any) -> None:
        """Take a part of the answer; its head waits for the first part of the body."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = message
            return
        head = self._head
        if head is not None:
            self._head = None
            written = None
            if not (message.get("more_body") or self.disconnected or self.flow.write_paused):
                written = self._in_bytes(
                    head["status"], head.get("headers", _NO_HEADERS), message.get("body", b"")
                )
            if written is not None:
                self._finish(written)
                return
            await super().send(cast(Any, head))
        await super().send(message)

    def _in_bytes(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> bytes | None:
        """The whole answer, or None where uvicorn has to look at it more closely."""
        length = None
        content = [STATUS_LINE[status], _server_lines(self.protocol)]
        values = []
        for name, value in headers:
            if name == b"content-length":
                length = value
            elif name in (b"connection", b"transfer-encoding"):
                return None
            values.append(value)
            content += (name, b": ", value, b"\r\n")
        if length is None:
            if status not in _NO_BODY or body:
                return None
        elif length != b"%d" % len(body) or self.scope["method"] == "HEAD":
            return None
        if HEADER_VALUE_RE.search(b"".join(values)):
            return None
        content += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", body)
        return b"".join(content)

    def _finish(self, written: bytes) -> None:
        self.response_started = True
        self.response_complete = True
        self.transport.write(written)
        event = self.__dict__.get("message_event")
        if event is not None:
            event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


_lines: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")


def _server_lines(protocol: BoundedHttpProtocol) -> bytes:
    """The server's own headers as they are written; uvicorn makes a new list every second."""
    global _lines
    headers = protocol.server_state.default_headers
    if headers is not _lines[0]:
        _lines = headers, b"".join(b"%b: %b\r\n" % header for header in headers)
    return _lines[1]
