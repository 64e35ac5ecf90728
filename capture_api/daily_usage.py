"""How many events each project has sent today, over all workers and replicas.

    count() → what this process has taken in, per UTC day      (event loop; only ever grows)
            → the ledger: what was not added yet               (a thread, every few seconds)
            ← what all have added, less what this process has  (the same)

`used_today` is the sum of both. While the ledger is away counting goes on, and what was counted is
added when it is back, to the day it belongs to. The thread is its own because a write may have to
wait for another one, and no token should wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from orchestration.ledger.connection import open_ledger
from orchestration.ledger.errors import in_one_line
from orchestration.ledger.usage import add_usage, usage_of

FLUSH_SECONDS = 5.0
DATE_CHECK_SECONDS = 60.0
"""Midnight is waited for in steps of this, in case the clock is set meanwhile."""
CLOSE_SECONDS = 3.0

log = logging.getLogger("tidemark.capture.projects")


@dataclass(eq=False)
class _Day:
    """The counts of one UTC day."""

    date: date
    counted: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    added: dict[int, int] = field(default_factory=dict)  # of `counted`, in the ledger
    others: dict[int, int] = field(default_factory=dict)  # in the ledger, less `added`


class DailyUsage:
    """The counts; between `start` and `close`, on one event loop."""

    def __init__(self, ledger_url: str) -> None:
        self._ledger_url = ledger_url
        self._engine: Engine | None = None
        self._today = _Day(_now().date())
        self._days = [self._today]  # with past days of which something is to be added yet
        self._error = ""
        self._stopping = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name="daily usage", daemon=True)
        self.failures = 0

    def start(self) -> None:
        """Start sharing. Called on the event loop that will count."""
        self._loop = asyncio.get_running_loop()
        self._see_date()
        self._thread.start()

    async def close(self) -> None:
        """Add what was counted, if the ledger takes it now."""
        if self._timer:
            self._timer.cancel()
        self._stopping.set()
        # A ledger that hangs must not hold up the end of the process.
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def count(self, project_id: int, events: int) -> None:
        """Add to the project's events of today."""
        self._today.counted[project_id] += events

    def used_today(self, project_id: int) -> int:
        """The project's events of today, as far as this process knows."""
        today = self._today
        return today.counted.get(project_id, 0) + today.others.get(project_id, 0)

    def _see_date(self) -> None:
        """Begin a new day when there is one."""
        now = _now()
        if now.date() != self._today.date:
            self._today = _Day(now.date())
            self._days.append(self._today)
        midnight = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
        wait = min((midnight - now).total_seconds(), DATE_CHECK_SECONDS)
        self._timer = self._loop.call_later(wait, self._see_date)

    def _run(self) -> None:
        self._share()  # at once: what was used before a restart counts
        while not self._stopping.wait(FLUSH_SECONDS):
            self._share()
        self._share()

    def _share(self) -> None:
        """Add what the ledger does not have yet, and read what all have sent."""
        try:
            if self._engine is None:
                self._engine = open_ledger(self._ledger_url)
            for day in list(self._days):
                self._add(self._engine, day)
        except Exception as error:  # the edge of the thread, which must go on
            if not isinstance(error, (SQLAlchemyError, OSError, ImportError)):
                log.exception("daily usage cannot be shared, in a way that was not foreseen")
            self.failures += 1
            if not self._error:
                log.warning(
                    "daily usage cannot be shared, and is counted here alone: %s",
                    in_one_line(error),
                )
            self._error = str(error)
            return
        if self._error:
            log.info("daily usage is shared again")
        self._error = ""

    def _add(self, ledger: Engine, day: _Day) -> None:
        over = day is not self._today  # asked first: what is over grows no more
        counted = dict(day.counted)
        new = {
            project_id: events - day.added.get(project_id, 0)
            for project_id, events in counted.items()
            if events != day.added.get(project_id, 0)
        }
        if new:
            add_usage(ledger, day.date, new)
            day.added = counted
        if over:
            self._days.remove(day)
            return
        day.others = {
            project_id: events - day.added.get(project_id, 0)
            for project_id, events in usage_of(ledger, day.date).items()
        }


def _now() -> datetime:
    return datetime.now(UTC)
