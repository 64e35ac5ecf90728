"""Bodies are read within their limits, and what they hold of the budget is always given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from capture_api.refusal import Refused
from capture_api.wire import body
from capture_api.wire.body import Budget, Charge, read_body

LIMIT = 100


def read(
    *chunks: bytes, declared: bytes | None = None, budget: Budget | None = None, end: str = "more"
) -> bytes:
    """Read a body that comes in these chunks; at its `end`: no more, silence, a hang-up."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks
    ]
    if end == "more":
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    elif end == "hang-up":
        messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets that event")

    async def main() -> bytes:
        with Charge(budget or Budget(LIMIT)) as charge:
            return await read_body(receive, declared, LIMIT, charge)

    return asyncio.run(main())


def test_chunks_are_joined() -> None:
    """The body is what its chunks are together; the limit itself is allowed."""
    assert read(b"a" * 60, b"", b"b" * 40) == b"a" * 60 + b"b" * 40
    assert read() == b""


@pytest.mark.parametrize(
    ("chunks", "declared", "end", "status", "code"),
    [
        ((b"a" * 101,), None, "more", 413, "too_large"),
        ((b"a" * 60, b"a" * 41), None, "silence", 413, "too_large"),
        ((), b"101", "silence", 413, "too_large"),
        ((), b"9" * 5000, "silence", 413, "too_large"),
        ((b"a" * 60,), b"100", "silence", 408, "body_stalled"),
        ((), b"100", "silence", 408, "body_stalled"),
        ((b"a" * 60,), b"100", "hang-up", 400, "client_gone"),
        ((), b"100", "hang-up", 400, "client_gone"),
    ],
)
def test_what_is_not_read_to_its_end(
    chunks: tuple[bytes, ...],
    declared: bytes | None,
    end: str,
    status: int,
    code: str,
) -> None:
    """Too long, stalled and broken-off bodies end in their refusal, and hold nothing afterwards."""
    budget = Budget(1_000, stall_seconds=0.01)
    with pytest.raises(Refused) as caught:
        read(*chunks, declared=declared, budget=budget, end=end)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert budget.held == 0


def test_budget_is_shared_and_given_back() -> None:
    """What one request holds another cannot, until it is released."""
    budget = Budget(100)
    with Charge(budget) as first:
        first.add(60)
        with pytest.raises(Refused) as caught:
            read(b"a" * 41, budget=budget)
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
        assert budget.held == 60
        assert read(b"a" * 40, budget=budget) == b"a" * 40
        first.release()
        assert budget.held == 0
    assert budget.held == 0


def test_trickling_body_is_given_up() -> None:
    """A byte now and then does not buy more time: the deadline is one for the whole body."""
    pieces = 0

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": pieces < LIMIT}

    async def main() -> None:
        with Charge(Budget(LIMIT, stall_seconds=0.05)) as charge:
            await read_body(receive, None, LIMIT, charge)

    with pytest.raises(Refused) as caught:
        asyncio.run(main())
    assert (caught.value.status, caught.value.code) == (408, "body_stalled")
    assert pieces < LIMIT


def test_large_body_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that came at a fair rate move the deadline."""
    monkeypatch.setattr(body, "SLOWEST_BYTES_PER_SECOND", 1)
    started = False

    async def receive() -> dict[str, Any]:
        nonlocal started
        if started:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"", "more_body": False}
        started = True
        return {"type": "http.request", "body": b"a" * LIMIT, "more_body": True}

    async def main() -> bytes:
        with Charge(Budget(LIMIT, stall_seconds=0.0)) as charge:
            return await read_body(receive, None, LIMIT, charge)

    assert asyncio.run(main()) == b"a" * LIMIT
