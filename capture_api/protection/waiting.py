"""Who is refused is told when its turn comes: a line for each key, of what was refused lately.

    refused ─▶ its turn: when the bucket has a token again, but behind those refused before it
               the next one's turn: later by what this one brings, over SHARE of the rate

SDKs come back after as many seconds as `Retry-After` says, and give up after three to ten tries.
Told "in a second", all of a burst would come each second, and most of it be given up while the
bucket lets in what the rate allows. With a turn of its own nearly each gets in at its second try.

A line is kept as the time at which it ends, so it grows shorter by itself. Nobody is known again:
who comes and finds that others took its place, goes to the end of the line. Who finds the line full
gets no turn, but is told to ask for one later: a line is never longer than LONGEST_SECONDS, however
much is refused, and however few of those in it come back.

Invariant: a key that is not here has nobody waiting, so memory is bounded by forgetting lines that
have ended; to forget others costs tries, and lets nothing in. Nothing here is looked at for a
request that is let in.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

LONGEST_SECONDS = 30
"""SDKs cut what they are told down to this."""

SPREAD_SECONDS = 5
"""Those without a turn come back over so many seconds up to the longest, not all at once."""

SHARE = 0.8
"""The part of the rate that is given out as turns. The rest is for those who come for the first
time meanwhile: without it they would take the places of those who wait, and these might give up."""

MAX_KEYS = 10_000
"""Lines after which those that have ended are forgotten, and then, if many are left, all."""


Line = tuple[float, float, float]
"""When it ends, its rate, and for how many seconds it had ended since it was last drained."""


class Waiting:
    """The lines of one kind, a key each. `name` tells them from other kinds in a shared store."""

    def __init__(
        self,
        name: str,
        shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
        randint: Callable[[int, int], int] = random.randint,
    ) -> None:
        self.name = name
        self.taken: dict[str, float] | None = {} if shared else None
        """What was given a turn since somebody last looked, where replicas share."""
        self._clock = clock
        self._randint = randint
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def turn(
        self, key: str, amount: float, rate: float, soonest: float, comes_back: bool = True
    ) -> int:
        """Give a turn to what has just been refused: the whole seconds until then, one at least.

        `soonest` are the seconds until the bucket lets something in. Who does not come back takes
        up no place.
        """
        now = self._clock()
        line = self._lines.get(key)
        end, idle = (now, 0.0) if line is None else (line[0], line[2])
        seconds = max(soonest, end - now)
        if seconds > LONGEST_SECONDS - 1:  # full
            return self._randint(LONGEST_SECONDS - SPREAD_SECONDS, LONGEST_SECONDS)
        if comes_back:
            idle += max(0.0, now - end)
            self._lines[key] = (_end(now, seconds, amount, rate), rate, idle)
            if len(self._lines) > MAX_KEYS:
                self._forget(now)
            if self.taken is not None:
                self.taken[key] = self.taken.get(key, 0) + amount
        return max(1, math.ceil(seconds))

    def drain(self, key: str, amount: float) -> None:
        """Learn that other replicas have given so much a turn since the last time.

        What could come while nobody waited here was theirs: else a replica that has refused nothing
        for a minute would put those it refuses then behind turns long over.
        """
        line = self._lines.get(key)
        if line is not None:
            end, rate, idle = line
            now = self._clock()
            idle += max(0.0, now - end)
            amount = max(0.0, amount - idle * SHARE * rate)
            self._lines[key] = (_end(now, max(0.0, end - now), amount, rate), rate, 0.0)

    def _forget(self, now: float) -> None:
        self._lines = {key: line for key, line in self._lines.items() if line[0] > now}
        if len(self._lines) > MAX_KEYS // 2:  # else the next one would have to look again
            self._lines.clear()


def _end(now: float, seconds: float, amount: float, rate: float) -> float:
    """When a line ends that has so many seconds so far, with so much more in it."""
    return now + min(seconds + amount / (SHARE * rate), LONGEST_SECONDS)
