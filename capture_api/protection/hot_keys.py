"""Hot keys: persons with so many events that they would heat one partition.

Counted in a row of cells over windows of time, a key's cell found by its hash: a fixed amount of
memory for any number of keys. A cell with an eighth of the limit may be several keys' doing, so
from then on its keys are counted one by one, and only one that is hot by itself counts as hot: if
alone in its cell, from its first event beyond the limit; beside others, up to an eighth sooner.
A key that was hot in a window stays so through the next one, lest it go to and fro.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

WINDOW_SECONDS = 10.0
_CELLS = 1 << 16
_MASK = _CELLS - 1
_MAX_SUSPECTS = 100_000


class HotKeys:
    """The hot keys of one worker, by the events a second over a window that make one."""

    def __init__(
        self, events_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        limit = max(1, int(events_per_second * WINDOW_SECONDS))
        self._uncounted = limit // 8  # events of a cell before its keys are counted one by one
        self._counted = limit - self._uncounted
        self._cells = array("I", bytes(4 * _CELLS))
        self._suspects: dict[bytes, int] = {}
        self._hot: set[bytes] = set()
        self._hot_before: frozenset[bytes] = frozenset()
        self._window_ends = clock() + WINDOW_SECONDS

    def turn_window(self) -> None:
        """Begin a new window if it is time. To be called once a request."""
        now = self._clock()
        if now >= self._window_ends:
            late = now >= self._window_ends + WINDOW_SECONDS
            self._hot_before = frozenset() if late else frozenset(self._hot)
            self._hot = set()
            self._suspects = {}
            self._cells = array("I", bytes(4 * _CELLS))
            self._window_ends = now + WINDOW_SECONDS

    def is_hot(self, key: bytes) -> bool:
        """Count an event of the key, and tell whether the key is hot now."""
        cell = hash(key) & _MASK
        count = self._cells[cell] + 1
        self._cells[cell] = count
        if count > self._uncounted:
            return self._suspected(key)
        return key in self._hot_before if self._hot_before else False

    def _suspected(self, key: bytes) -> bool:
        """Count an event of the key by itself."""
        if key in self._hot:
            return True
        count = self._suspects.get(key, 0) + 1
        if count > self._counted:
            self._hot.add(key)
            return True
        if count > 1 or len(self._suspects) < _MAX_SUSPECTS:
            self._suspects[key] = count
        return key in self._hot_before
