"""An HTTP proxy on loopback that spoils requests by a plan, and remembers all of them.

    client ──▶ proxy ──▶ server

A plan looks at each request and names its fault. The nasty one is RESET_AFTER: the server has
taken the request and answered, and the client never hears of it. Invariant: `exchanges` holds
every request that came in whole, in order, with the status that went back to the client (None
when it got nothing).
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from urllib.parse import urlsplit

DELAY_SECONDS = 0.2
_MOST_HEAD_BYTES = 1 << 20


class Fault(Enum):
    """What the proxy does to a request."""

    NONE = auto()
    DELAY = auto()  # forward it late
    UNAVAILABLE = auto()  # 503 instead of forwarding it
    UNAVAILABLE_LATER = auto()  # the same, with Retry-After
    RESET_BEFORE = auto()  # reset the connection instead of forwarding it
    RESET_DURING = auto()  # forward it, and reset the connection while the server is at it
    RESET_AFTER = auto()  # forward it, and reset the connection instead of answering
    HOLD = auto()  # forward it when `let_go` says so, whether or not its sender is still there


@dataclass
class Exchange:
    """One request, and what became of it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    fault: Fault = Fault.NONE
    status: int | None = None
    answered: int | None = None
    """The server's own status, where the request was forwarded."""
    answer: bytes = b""
    """The body of the server's answer."""

    @property
    def path(self) -> str:
        """The target without its query."""
        return urlsplit(self.target).path

    def __str__(self) -> str:
        return f"{self.method} {self.target} {self.fault.name} {self.answered}→{self.status}"


@dataclass(frozen=True)
class Canned:
    """An answer that the proxy gives itself."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


Plan = Callable[[Exchange], Fault]


def no_faults(_: Exchange) -> Fault:
    """Everything goes through."""
    return Fault.NONE


def dealt(
    seed: int, deck: dict[Fault, int], prefixes: Iterable[str], first: Iterable[Fault] = ()
) -> Plan:
    """POSTs to these paths draw from a shuffled deck of so many cards each, over and over.

    `first` lies on top of the first deck.
    Every fault happens, and none for ever; the same seed gives the same order.
    """
    dice = random.Random(seed)
    cards = [fault for fault, count in deck.items() for _ in range(count)]
    starts = tuple(prefixes)
    hand = [*first][::-1]

    def plan(exchange: Exchange) -> Fault:
        if exchange.method != "POST" or not exchange.path.startswith(starts):
            return Fault.NONE
        if not hand:
            hand.extend(dice.sample(cards, len(cards)))
        return hand.pop()

    return plan


class FaultyProxy:
    """The proxy, between `with`; it works in a thread of its own."""

    def __init__(self, upstream_port: int, plan: Plan = no_faults) -> None:
        self.plan = plan
        self.canned: dict[str, Canned] = {}
        self.answers: Callable[[Exchange], Canned | None] = lambda exchange: None
        self.exchanges: list[Exchange] = []
        self.port = 0
        self._upstream_port = upstream_port
        self._let_go = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faulty-proxy", daemon=True)

    @property
    def url(self) -> str:
        """What a client takes for the server."""
        return f"http://127.0.0.1:{self.port}"

    def of(self, prefix: str) -> list[Exchange]:
        """The exchanges of the paths that begin so."""
        return [exchange for exchange in self.exchanges if exchange.path.startswith(prefix)]

    def held(self) -> list[Exchange]:
        """The requests that are held, or were."""
        return [exchange for exchange in self.exchanges if exchange.fault is Fault.HOLD]

    def let_go(self) -> None:
        """Forward what is held, and hold nothing more."""
        self._loop.call_soon_threadsafe(self._let_go.set)

    def asked(self) -> set[str]:
        """Every method and path that was asked for, preflights apart."""
        return {f"{e.method} {e.path}" for e in self.exchanges if e.method != "OPTIONS"}

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        assert self._started.wait(10), "the proxy did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MOST_HEAD_BYTES)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection; it has one connection of its own to the server."""
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head, body = await _request(reader, writer)
                exchange = _exchange(head, body)
                self.exchanges.append(exchange)
                exchange.fault = self.plan(exchange)
                canned = (
                    self.canned.get(exchange.path)
                    or self.answers(exchange)
                    or _unavailable(exchange.fault)
                )
                if exchange.fault is Fault.RESET_BEFORE:
                    return _reset(writer)
                if canned is not None and exchange.method != "OPTIONS":
                    exchange.status = canned.status
                    writer.write(_packed(canned, exchange))
                    await writer.drain()
                    continue
                if exchange.fault is Fault.HOLD:
                    await self._let_go.wait()
                if exchange.fault is Fault.DELAY:
                    await asyncio.sleep(DELAY_SECONDS)
                if upstream is None or upstream[0].at_eof():  # servers end idle connections
                    upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
                upstream[1].write(head + body)
                if exchange.fault is Fault.RESET_DURING:
                    await upstream[1].drain()
                    _reset(writer)
                answer_head, answer_body = await _answer(upstream[0], exchange.method)
                exchange.answered = int(answer_head.split(b" ", 2)[1])
                exchange.answer = answer_body
                if exchange.fault is Fault.RESET_DURING:
                    return None
                if exchange.fault is Fault.RESET_AFTER:
                    return _reset(writer)
                exchange.status = exchange.answered
                writer.write(answer_head + answer_body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            _reset(writer)  # whichever side hung up, the other shall see it
        finally:
            writer.close()
            if upstream is not None:
                upstream[1].close()


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[bytes, bytes]:
    """Head and body of a request; who asks whether to send the body is told to."""
    head = await reader.readuntil(b"\r\n\r\n")
    if _headers(head).get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await _with_body(reader, head)


async def _answer(reader: asyncio.StreamReader, method: str) -> tuple[bytes, bytes]:
    """Head and body of an answer, as they came, without what was said before it."""
    head = await reader.readuntil(b"\r\n\r\n")
    while head.split(b" ", 2)[1].startswith(b"1"):
        head = await reader.readuntil(b"\r\n\r\n")
    if method == "HEAD" or head.split(b" ", 2)[1] in (b"204", b"304"):
        return head, b""
    return await _with_body(reader, head)


async def _with_body(reader: asyncio.StreamReader, head: bytes) -> tuple[bytes, bytes]:
    headers = _headers(head)
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return head, await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if size == 0:
            return head, body


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _exchange(head: bytes, body: bytes) -> Exchange:
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    return Exchange(method, target, _headers(head), body)


def _unavailable(fault: Fault) -> Canned | None:
    """What a gateway says whose server is away."""
    if fault is Fault.UNAVAILABLE:
        return Canned(503, b"no server is available", "text/plain")
    if fault is Fault.UNAVAILABLE_LATER:
        return Canned(503, b"no server is available", "text/plain", {"Retry-After": "1"})
    return None


def _packed(answer: Canned, exchange: Exchange) -> bytes:
    """The answer's bytes, with the CORS headers that a browser needs to see any of it."""
    lines = [
        f"HTTP/1.1 {answer.status} Canned",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    if origin := exchange.headers.get("origin"):
        lines += [
            f"Access-Control-Allow-Origin: {origin}",
            "Access-Control-Allow-Credentials: true",
            "Access-Control-Expose-Headers: Retry-After",
        ]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Hang up so that the other side sees a reset and not an end."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
