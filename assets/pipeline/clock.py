"""Where a batch's time goes: wall and CPU seconds by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from assets.pipeline.batch import Timing

T = TypeVar("T")


class StageClock:
    """Adds up wall and CPU seconds (of the whole process) under the names of stages."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a with-block."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[name] += time.perf_counter() - wall
            self.cpu[name] += time.process_time() - cpu

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
