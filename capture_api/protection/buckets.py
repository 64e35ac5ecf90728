"""Token buckets: how much each key may still do now.

A bucket holds at most `burst` and fills at `rate` a second. It is taken from while there is one
whole token in it, however much is taken: a batch larger than the burst passes once and is paid
off by waiting, rather than never passing at all. Other replicas' takings arrive by `drain`
(`shared.py`).

Invariant: a key that is not here has a full bucket, so memory is bounded by forgetting full ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MAX_KEYS = 100_000
"""Buckets after which full ones are forgotten, and then, if need be, all."""

MAX_DEBT_SECONDS = 60.0
"""Others' takings never lock a key out for longer than the rate takes to fill this (or a burst)."""


Bucket = tuple[float, float, float, float, float]
"""When it was last taken from: level, at, rate, burst, and what ran over since it was last drained.

A bare tuple: making a named one costs more than the rest of `take`.
"""


class Buckets:
    """Buckets of one kind, a key each. `name` tells them from other kinds in a shared store."""

    def __init__(
        self, name: str, shared: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.taken: dict[str, float] | None = {} if shared else None
        """What was taken since somebody last looked, where replicas share."""
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, amount: float, rate: float, burst: float) -> float:
        """Take the amount, and give 0; or take nothing, and give the seconds until it can be."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:  # full for who knows how long
            level, lost = burst, math.inf
        else:
            before, at, _, _, lost = bucket
            level = before + (now - at) * rate
            if level > burst:
                lost += level - burst
                level = burst
        if level < 1.0:
            least = min(1.0, burst)
            if level < least:
                return max((least - level) / rate, 1e-3)
        self._buckets[key] = (level - amount, now, rate, burst, lost)
        if len(self._buckets) > MAX_KEYS:
            self._forget(now)
        if self.taken is not None:
            self.taken[key] = self.taken.get(key, 0) + amount
        return 0.0

    def drain(self, key: str, amount: float) -> None:
        """Other replicas have taken so much from this key's bucket since the last time.

        What ran over here meanwhile was theirs to take: else a replica that has not met a key for
        a minute would lock it out for another.
        """
        bucket = self._buckets.get(key)
        if bucket is not None:
            level, at, rate, burst, lost = bucket
            deepest = min(level, -max(burst, rate * MAX_DEBT_SECONDS))
            level = max(deepest, level - max(0.0, amount - lost))
            self._buckets[key] = (level, at, rate, burst, 0.0)

    def _forget(self, now: float) -> None:
        self._buckets = {
            key: bucket
            for key, bucket in self._buckets.items()
            if bucket[0] + (now - bucket[1]) * bucket[2] < bucket[3]
        }
        if len(self._buckets) > MAX_KEYS:
            self._buckets.clear()


def retry_after(seconds: float) -> int:
    """Whole seconds for a Retry-After header: at least one."""
    return max(1, math.ceil(seconds))
