"""What the latency benchmark prints: the whole delay, and its parts in the order of time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from bench.figures import percentile, table


@dataclass(frozen=True)
class Delay:
    """One event's way from its 200 to being visible, in seconds. The parts add up to `whole`."""

    run_id: str
    whole: float
    until_tick: float
    until_start: float
    until_plan: float
    until_staged: float
    until_visible: float


_LINES = {
    "until_tick": "waits for a tick that starts a run",
    "until_start": "the run is queued, its process starts",
    "until_plan": "the first step begins, the batch is planned",
    "until_staged": "read, judged, enriched, staged",
    "until_visible": "loaded (and seen by the poll)",
    "whole": "from the 200 to visible",
}


def summary(delays: Sequence[Delay]) -> dict[str, Any]:
    """Median, 95th percentile, maximum and mean of the whole and of each part."""
    found = {}
    for name in _LINES:
        seconds = [getattr(delay, name) for delay in delays]
        found[name] = {
            "median": statistics.median(seconds),
            "p95": percentile(seconds, 95),
            "max": max(seconds),
            "mean": statistics.fmean(seconds),
        }
    return found


def show(console: Console, delays: Sequence[Delay], cadence: str) -> None:
    """Print the table."""
    runs = len({delay.run_id for delay in delays})
    made = table(
        f"Seconds from the 200 until an event can be queried, cadence {cadence}",
        f"{len(delays):,} events in {runs} runs",
        "median",
        "p95",
        "max",
        "mean",
    )
    found = summary(delays)
    for name, title in _LINES.items():
        if name == "whole":
            made.add_section()
        made.add_row(title, *(f"{found[name][of]:.2f}" for of in ("median", "p95", "max", "mean")))
    console.print(made)
    console.print("The means add up; medians, percentiles and maxima do not.", highlight=False)
