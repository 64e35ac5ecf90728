"""Processes that a test knows by their pids alone: not its own children."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from orchestration.process_stat import stat_of

PATIENCE_S = 120.0


def process_state(pid: int) -> str:
    """As the kernel spells it: T is stopped; empty when there is no such process."""
    try:
        return stat_of(pid)[0]
    except OSError:
        return ""


def alive(pids: Iterable[int]) -> list[int]:
    """Those of them that have not ended."""
    return [pid for pid in pids if process_state(pid) not in ("", "Z", "X")]


def await_ended(pids: Sequence[int]) -> None:
    """Return when none of them is alive."""
    end = time.monotonic() + PATIENCE_S
    while left := alive(pids):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.01)
