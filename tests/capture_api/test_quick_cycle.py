"""The quick way of a request through the protocol, beside uvicorn's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from capture_api.wire.connections import ConnectionLimits, Sweep
from capture_api.wire.http_protocol import BoundedHttpProtocol

LIMITS = ConnectionLimits(
    connections=10, head_seconds=9, idle_seconds=9, stall_seconds=9, drain_bytes=1 << 20
)
HEAD = b"POST /a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"
POST = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234), "sockname": ("192.0.2.2", 80)})
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def respond(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    told = {name: value for name, value in scope.items() if name != "state"}
    body = await read(receive) + repr(told).encode()
    await respond(send, 200, body, (b"content-length", b"%d" % len(body)), (b"X-B", b"c"))


async def without_reading(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 413, b"no", (b"content-length", b"2"))


async def without_length(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 200, b"some")


async def no_content(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 204, b"")


async def closing(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 200, b"ab", (b"content-length", b"2"), (b"connection", b"close"))


async def in_pieces(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in (b"one", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def wrong_length(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 200, b"longer", (b"content-length", b"2"))


async def second_line_in_a_header(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, 200, b"", (b"content-length", b"0"), (b"x", b"y\r\nz: 1"))


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("a bug")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    pass


async def serve(new: Callable[..., HttpToolsProtocol], app: Any, *reads: bytes) -> Transport:
    """Let the application answer what comes with these reads."""
    config = Config(app, lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"today")]
    protocol = new(config=config, server_state=state, app_state={})
    transport = Transport()
    protocol.connection_made(transport)
    for data in reads:
        protocol.data_received(data)
        for _ in range(20):
            await asyncio.sleep(0)
    protocol.connection_lost(None)
    while state.tasks:
        await asyncio.sleep(0)
    return transport


@pytest.mark.parametrize(
    "reads",
    [
        [POST],
        [POST[:-2], POST[-2:]],
        [HEAD, POST[len(HEAD) :]],
        [POST[:30], POST[30:]],
        [CHUNKED],
        [CHUNKED[:-12], CHUNKED[-12:]],
        [POST + POST + CHUNKED],
        [POST + POST[:-1], POST[-1:] + POST],
        [POST.replace(b"POST", b"HEAD")],
        [POST.replace(b"HTTP/1.1", b"HTTP/1.0")],
        [HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n"],
        [HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"hello"],
    ],
)
@pytest.mark.parametrize(
    "app",
    [
        echo,
        no_content,
        without_length,
        closing,
        in_pieces,
        wrong_length,
        failing,
        silent,
        second_line_in_a_header,
    ],
)
def test_the_same_bytes_as_uvicorn(app: Any, reads: list[bytes]) -> None:
    """Whatever the application does and however the request comes, the client cannot tell."""
    ours = asyncio.run(serve(partial(BoundedHttpProtocol, sweep=Sweep(LIMITS)), app, *reads))
    uvicorns = asyncio.run(serve(HttpToolsProtocol, app, *reads))
    assert ours.written.replace(b"X-B", b"x-b") == uvicorns.written
    assert ours.closed == uvicorns.closed


def test_an_answer_before_the_body() -> None:
    """A refusal does not wait for the body, and the next request is answered after it."""
    new = partial(BoundedHttpProtocol, sweep=Sweep(LIMITS))
    transport = asyncio.run(serve(new, without_reading, POST[:-2], POST[-2:] + POST))
    assert transport.written.count(b"HTTP/1.1 413 ") == 2
