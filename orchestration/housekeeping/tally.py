"""Tally: what went of one kind, or would go; what stayed although it is old enough, and why."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

PATIENCE_S = 900.0
"""For how long housekeeping goes on with one kind: the rest is the next run's."""


@dataclass
class Tally:
    """Of one kind. `kept` says why things stayed that are old enough, and how many of them.

    `cut_short`: there is more to let go of than there was time for.
    """

    what: str
    count: int = 0
    bytes: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    cut_short: bool = False
    until: float = field(default_factory=lambda: time.monotonic() + PATIENCE_S)

    def has_time(self) -> bool:
        """Whether to go on; notes that there is more, where not."""
        self.cut_short = time.monotonic() > self.until
        return not self.cut_short

    def add(self, count: int, size: int = 0) -> None:
        """Count what went."""
        self.count += count
        self.bytes += size
