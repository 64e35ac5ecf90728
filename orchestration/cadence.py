"""Cadence: how often micro-batches run, as it is written, and the ticks that come of it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from cronsim import CronSim, CronSimError

_INTERVAL = re.compile(r"^(\d+)\s*(s|m|h)$")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}

DAGSTER_SENSOR_FLOOR_SECONDS = 5
"""Dagster's sensor daemon looks around every 5 s, so an interval is a multiple of that."""


class Cadence:
    """How often micro-batches run: either a cron expression or an interval in seconds.

    Raises ValueError, with what would be accepted, for anything else.
    """

    def __init__(self, text: str) -> None:
        text = text.strip()
        self.text = text
        self.cron: str | None = None
        self.interval_seconds: int | None = None
        interval = _INTERVAL.match(text)
        if interval:
            seconds = int(interval[1]) * _UNIT_SECONDS[interval[2]]
            if seconds < DAGSTER_SENSOR_FLOOR_SECONDS:
                raise ValueError(
                    f"cadence {text!r} is below {DAGSTER_SENSOR_FLOOR_SECONDS}s, "
                    "the shortest that Dagster's sensors can keep"
                )
            if seconds < 60:
                if seconds % DAGSTER_SENSOR_FLOOR_SECONDS:
                    raise ValueError(
                        f"cadence {text!r} must be a multiple of "
                        f"{DAGSTER_SENSOR_FLOOR_SECONDS}s when under a minute"
                    )
                self.interval_seconds = seconds
            else:
                self.cron = _cron_of_interval(text, seconds)
        elif len(text.split()) == 5 and is_cron(text):
            self.cron = text
        else:
            raise ValueError(
                f"cadence {text!r} is neither an interval (30s, 1m, 2h) "
                "nor a five-field cron expression (*/5 * * * *)"
            )

    def gap_seconds(self, now: datetime) -> float:
        """Seconds from the next tick to the one after it."""
        if self.interval_seconds is not None or self.cron is None:
            return float(self.interval_seconds or 0)
        ticks = CronSim(self.cron, now)
        first = next(ticks)
        return (next(ticks) - first).total_seconds()

    def next_tick(self, after: datetime) -> datetime:
        """When the first tick after a moment comes, at the latest."""
        if self.interval_seconds is not None or self.cron is None:
            return after + timedelta(seconds=self.interval_seconds or 0)
        return next(CronSim(self.cron, after))


def is_cron(text: str) -> bool:
    """Whether it is a cron expression."""
    try:
        CronSim(text, datetime(2000, 1, 1))
    except CronSimError:
        return False
    return True


def _cron_of_interval(text: str, seconds: int) -> str:
    """The cron expression that fires every so many seconds, if there is an even one."""
    minutes, rest = divmod(seconds, 60)
    if rest == 0 and minutes < 60 and 60 % minutes == 0:
        return "* * * * *" if minutes == 1 else f"*/{minutes} * * * *"
    if rest == 0 and minutes % 60 == 0 and minutes // 60 <= 24 and 24 % (minutes // 60) == 0:
        hours = minutes // 60
        return {1: "0 * * * *", 24: "0 0 * * *"}.get(hours, f"0 */{hours} * * *")
    raise ValueError(
        f"cadence {text!r} does not divide an hour or a day evenly; "
        "write it as a cron expression instead"
    )
