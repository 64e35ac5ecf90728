"""What the micro-batch benchmark prints: the arms side by side, Tidemark's stages, the backlog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.figures import Spread, spread, table

if TYPE_CHECKING:
    from bench.micro_batch import Run

_TITLES = {
    "tidemark": "Tidemark",
    "loop": "loop: json.loads,\nrow inserts",
    "arrow": "arrow: msgspec,\ninsert_arrow",
    "jsoneachrow": "jsoneachrow:\nClickHouse parses",
}
_MEGABYTE = 1 << 20
_ORDER = ("plan", "read", "validate", "deduplicate", "enrich", "stage", "load", "prove", "other")


def _per_million(seconds: Callable[[Run], float]) -> Callable[[Run], float]:
    return lambda run: seconds(run) / run.carried.records * 1e6


_FIGURES: dict[str, tuple[str, int, Callable[[Run], float]]] = {
    "events_per_s": ("events a second", 0, lambda run: run.carried.records / run.carried.wall_s),
    "worker_cpu": ("CPU of the worker", 1, _per_million(lambda run: run.carried.cpu_s)),
    "server_cpu": ("CPU of ClickHouse", 1, _per_million(lambda run: run.server_cpu_s)),
    "merging_cpu": ("  of it afterwards", 1, _per_million(lambda run: run.server_merging_cpu_s)),
    "cpu": ("CPU of both", 1, _per_million(lambda run: run.carried.cpu_s + run.server_cpu_s)),
    "worker_peak_mb": ("worker's peak, MB", 0, lambda run: run.carried.peak_bytes / _MEGABYTE),
    "server_peak_mb": ("ClickHouse's, MB", 0, lambda run: run.server_peak_bytes / _MEGABYTE),
    "parts": ("parts left", 0, lambda run: run.parts),
}
"""Name in the JSON → line, digits, how it is had from a run. CPU is seconds a million events."""


def summary(runs: Sequence[Run], ours: str) -> dict[str, Any]:
    """Median, least and most of every figure by arm, and how many times ours each arm costs."""
    cost = {arm: figures["cpu"].median for arm, figures in _spreads(runs).items()}
    return {
        arm: {name: asdict(value) for name, value in figures.items()}
        | {"cpu_ratio": cost[arm] / cost[ours]}
        for arm, figures in _spreads(runs).items()
    }


def show(console: Console, runs: Sequence[Run], waited: Sequence[Run], ours: str) -> None:
    """Print the tables."""
    mine = [run for run in runs if run.arm == ours]
    console.print(_arms(runs, ours))
    console.print(_stages(mine))
    if waited:
        console.print(_backlog(mine, waited))
    kafka = spread(run.kafka_cpu_s / run.carried.records * 1e6 for run in runs)
    console.print(
        "CPU: user and system seconds a million events; ClickHouse's until its merges are done. "
        f"Kafka's own, {kafka.show()}, is the same for all and left out. Of several runs: median "
        "(least-most). The peers neither stage, prove nor look for duplicates.",
        highlight=False,
    )


def _spreads(runs: Sequence[Run]) -> dict[str, dict[str, Spread]]:
    return {
        arm: {
            name: spread(figure(run) for run in runs if run.arm == arm)
            for name, (_, _, figure) in _FIGURES.items()
        }
        for arm in dict.fromkeys(run.arm for run in runs)
    }


def _arms(runs: Sequence[Run], ours: str) -> Table:
    found = _spreads(runs)
    made = table(
        "The same records, carried from Kafka into ClickHouse",
        "",
        *(_TITLES.get(arm, arm) for arm in found),
    )
    for name, (title, digits, _) in _FIGURES.items():
        made.add_row(title, *(figures[name].show(digits) for figures in found.values()))
    made.add_row(
        "CPU, times ours",
        *(f"{f['cpu'].median / found[ours]['cpu'].median:.2f}" for f in found.values()),
    )
    return made


def _stages(runs: Sequence[Run]) -> Table:
    made = table(
        "Tidemark's worker by stage, seconds a million events", "stage", "wall", "CPU", "share"
    )
    total = spread(run.carried.cpu_s / run.carried.records * 1e6 for run in runs).median
    for stage in _ORDER:
        seconds = [
            tuple(value / run.carried.records * 1e6 for value in run.carried.stages[stage])
            for run in runs
            if stage in run.carried.stages
        ]
        if seconds:
            wall, cpu = spread(s[0] for s in seconds), spread(s[1] for s in seconds)
            made.add_row(stage, wall.show(2), cpu.show(2), f"{cpu.median / total:.0%}")
    return made


def _backlog(mine: Sequence[Run], waited: Sequence[Run]) -> Table:
    made = table(
        "When more waits",
        "waiting",
        "batches",
        "stagers",
        "worker, MB",
        "ClickHouse, MB",
        "CPU",
        "events a second",
    )
    cost, pace = _FIGURES["cpu"][2], _FIGURES["events_per_s"][2]
    arms = [mine, *([r for r in waited if r.stagers == n] for n in {r.stagers: 0 for r in waited})]
    for runs in arms:
        made.add_row(
            f"{runs[0].carried.records:,}",
            f"{runs[0].carried.batches:,}",
            f"{runs[0].stagers:,}",
            spread(run.carried.peak_bytes / _MEGABYTE for run in runs).show(0),
            spread(run.server_peak_bytes / _MEGABYTE for run in runs).show(0),
            spread(map(cost, runs)).show(),
            spread(map(pace, runs)).show(0),
        )
    return made
