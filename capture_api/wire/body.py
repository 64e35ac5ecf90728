"""Request bodies: read as they stream, cut off at the cap, and counted while they are held.

One `Budget` a process bounds what all requests hold together; a request charges it as its bytes
arrive and grow, and gives everything back once its records are with the producer (whose own queue
is bounded) or it is refused.
"""

from __future__ import annotations

import asyncio

from capture_api.answers import Receive
from capture_api.refusal import Refused, bad_request, too_large, try_later

STALL_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 64_000
"""A body has STALL_SECONDS and the time its bytes so far take at this rate, counted from the start:
one that trickles is given up, lest slow clients hold the whole budget."""


class Budget:
    """The bytes of requests that the process holds, and how many it may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
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
    now = asyncio.get_running_loop().time()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(now + STALL_SECONDS) as patience:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # Nobody is left to read this answer, but the log tells.
                    raise bad_request(
                        "the client hung up before the body was complete", "client_gone"
                    )
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _over(limit)
                charge.add(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body"):
                    return chunk if len(chunks) == 1 else b"".join(chunks)
                patience.reschedule(now + STALL_SECONDS + size / SLOWEST_BYTES_PER_SECOND)
    except TimeoutError:
        raise Refused(
            408,
            "body_stalled",
            f"the body came too slowly ({size} bytes so far): send the request again",
        ) from None


def _over(limit: int) -> Refused:
    return too_large(
        f"maximum event size exceeded: the body has more than {limit} bytes; send smaller batches"
    )
