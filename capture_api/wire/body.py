"""Request bodies: read as they stream, cut off at the cap, and counted while they are held.

One `Budget` a process bounds what all requests hold together; a request charges it as its bytes
arrive and grow, and gives everything back once its records are with the producer (whose own queue
is bounded) or it is refused.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Generator
from typing import Any

from capture_api.answers import Message, Receive
from capture_api.refusal import Refused, bad_request, too_large, try_later

STALL_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 64_000
"""A body has the budget's `stall_seconds` and the time that its bytes so far take at this rate,
counted from the start: one that trickles is given up, lest slow clients hold the whole budget."""


class Budget:
    """The bytes of requests that the process holds, how many it may, and for whom it waits."""

    def __init__(self, limit: int, stall_seconds: float = STALL_SECONDS) -> None:
        self.limit = limit
        self.stall_seconds = stall_seconds
        self.held = 0


class Charge:
    """One request's part of the budget; used as a context manager, given back at its end."""

    __slots__ = ("_budget", "_bytes")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._bytes = 0

    def add(self, count: int) -> None:
        """Hold so many more bytes, or refuse with 503."""
        budget = self._budget
        if budget.held + count > budget.limit:
            raise try_later(
                "overloaded",
                f"the server already holds {budget.held} of at most {budget.limit} bytes of "
                "requests: send this one again in a moment",
            )
        budget.held += count
        self._bytes += count

    def only(self, count: int) -> None:
        """Hold so many bytes in place of those so far, or refuse with 503."""
        self.release()
        self.add(count)

    def deadline(self, began: float, size: int) -> float:
        """Until when a body that began then, and has so many bytes now, may go on."""
        return began + self._budget.stall_seconds + size / SLOWEST_BYTES_PER_SECOND

    def release(self) -> None:
        """Give everything back; may be called again."""
        self._budget.held -= self._bytes
        self._bytes = 0

    def __enter__(self) -> Charge:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


async def read_body(
    receive: Receive, declared_length: bytes | None, limit: int, charge: Charge
) -> bytes:
    """The whole body. Refuses (413) what is longer than the limit, and never holds more of it."""
    if declared_length and declared_length.isdigit() and int(declared_length[:18]) > limit:
        raise _over(limit)
    # Nearly always the body is here whole already, and a timeout costs as much as parsing it: so
    # one is set only when the first message has to be waited for, or others follow.
    first = receive().__await__()
    try:
        waits_for = next(first)
    except StopIteration as arrived:
        message: Message = arrived.value
        chunk = _chunk(message, 0, limit, charge)
        if not message.get("more_body"):
            return chunk
        return await _read_slowly(receive, receive(), chunk, limit, charge)
    return await _read_slowly(receive, _resumed(first, waits_for), b"", limit, charge)


async def _read_slowly(
    receive: Receive, coming: Awaitable[Message], chunk: bytes, limit: int, charge: Charge
) -> bytes:
    """The body that begins with `chunk` and goes on with the message that is `coming`."""
    now = asyncio.get_running_loop().time()
    chunks = [chunk]
    size = len(chunk)
    try:
        async with asyncio.timeout_at(charge.deadline(now, size)) as patience:
            while True:
                message = await coming
                chunk = _chunk(message, size, limit, charge)
                chunks.append(chunk)
                size += len(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
                patience.reschedule(charge.deadline(now, size))
                coming = receive()
    except TimeoutError:
        raise Refused(
            408,
            "body_stalled",
            f"the body came too slowly ({size} bytes so far): send the request again",
        ) from None


@types.coroutine
def _resumed(
    started: Generator[Any, None, Message], waits_for: object
) -> Generator[Any, None, Message]:
    """What an awaitable gives that has been started by hand, and waits for something."""
    try:
        yield waits_for
        return (yield from started)
    finally:
        started.close()


def _chunk(message: Message, size: int, limit: int, charge: Charge) -> bytes:
    """The message's part of the body, which has `size` bytes before it."""
    if message["type"] == "http.disconnect":
        # Nobody is left to read this answer, but the log tells.
        raise bad_request("the client hung up before the body was complete", "client_gone")
    chunk: bytes = message.get("body", b"")
    if size + len(chunk) > limit:
        raise _over(limit)
    charge.add(len(chunk))
    return chunk


def _over(limit: int) -> Refused:
    return too_large(
        f"maximum event size exceeded: the body has more than {limit} bytes; send smaller batches"
    )
