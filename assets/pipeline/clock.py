"""Where a batch's time goes: wall and CPU seconds by stage.

Stages that run side by side are timed each in its own thread: their wall seconds may add up to more
than what passed, their CPU seconds to no more than was used.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from assets.pipeline.batch import Timing

T = TypeVar("T")


class StageClock:
    """Adds up wall and CPU seconds (of the calling thread) under the names of stages."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a with-block."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.wall[name] += time.perf_counter() - wall
                self.cpu[name] += time.thread_time() - cpu

    def timings(self) -> dict[str, Timing]:
        """What every stage took so far."""
        return {stage: Timing(self.wall[stage], self.cpu[stage]) for stage in self.wall}

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on, timing how long each one took to come."""
        source = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item
