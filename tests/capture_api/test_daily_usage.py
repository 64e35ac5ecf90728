"""Daily usage of one process: days, failures, and what others have added."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from capture_api import daily_usage
from capture_api.daily_usage import DailyUsage
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.usage import add_usage, usage_of

EVE = datetime(2026, 2, 28, 23, 59, 59, 900_000, UTC)
MORNING = datetime(2026, 3, 1, 0, 0, 0, 100_000, UTC)


class Clock:
    """The time as the module sees it."""

    def __init__(self) -> None:
        self.now = EVE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands at a tenth of a second before midnight, and sharing without delay."""
    clock = Clock()
    monkeypatch.setattr(daily_usage, "_now", lambda: clock.now)
    monkeypatch.setattr(daily_usage, "FLUSH_SECONDS", 0.02)
    return clock


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a ledger."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Engine:
    """The ledger."""
    return open_ledger(url)


async def holds(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def with_usage(url: str, body: Callable[[DailyUsage], Awaitable[None]]) -> None:
    """Run the body with daily usage that is started, and close it."""

    async def main() -> None:
        usage = DailyUsage(url)
        usage.start()
        await body(usage)
        await usage.close()

    asyncio.run(main())


def test_a_new_day_starts_from_zero(url: str, ledger: Engine, clock: Clock) -> None:
    """At midnight UTC the count begins anew, and each day gets the events that came on it."""

    async def body(usage: DailyUsage) -> None:
        usage.count(1, 5)
        assert usage.used_today(1) == 5
        clock.now = MORNING
        await holds(lambda: usage.used_today(1) == 0)
        usage.count(1, 2)
        assert usage.used_today(1) == 2

    with_usage(url, body)
    assert usage_of(ledger, EVE.date()) == {1: 5}
    assert usage_of(ledger, MORNING.date()) == {1: 2}


def test_what_others_have_sent_counts(url: str, ledger: Engine, clock: Clock) -> None:
    """Before a process has taken in anything, and while it does, it knows of the others' events."""
    add_usage(ledger, EVE.date(), {1: 100, 2: 7})

    async def body(usage: DailyUsage) -> None:
        await holds(lambda: usage.used_today(1) == 100)
        usage.count(1, 1)
        assert usage.used_today(1) == 101
        add_usage(ledger, EVE.date(), {1: 1_000})
        await holds(lambda: usage.used_today(1) == 1_101)
        assert (usage.used_today(2), usage.used_today(3)) == (7, 0)

    with_usage(url, body)
    assert usage_of(ledger, EVE.date()) == {1: 1_101, 2: 7}


def test_an_outage_over_midnight_loses_no_count(
    url: str, ledger: Engine, clock: Clock, tmp_path: Path
) -> None:
    """What was counted while the ledger was away is added to its own day when it is back."""
    aside = tmp_path / "aside"

    async def body(usage: DailyUsage) -> None:
        usage.count(1, 1)
        await holds(lambda: usage_of(ledger, EVE.date()) == {1: 1})
        (tmp_path / "ledger.db").rename(aside)
        (tmp_path / "ledger.db").mkdir()
        await holds(lambda: usage.failures > 0)
        usage.count(1, 10)
        clock.now = MORNING
        await holds(lambda: usage.used_today(1) == 0)
        usage.count(1, 100)
        failures = usage.failures
        await holds(lambda: usage.failures > failures)
        assert usage.used_today(1) == 100
        (tmp_path / "ledger.db").rmdir()
        aside.rename(tmp_path / "ledger.db")
        await holds(lambda: usage_of(ledger, MORNING.date()) == {1: 100})

    with_usage(url, body)
    assert usage_of(ledger, EVE.date()) == {1: 11}
    assert usage_of(ledger, MORNING.date()) == {1: 100}
