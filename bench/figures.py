"""Figures: medians with their spread, the machine they were taken on, and the file they go to."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

_PACKAGES = ("tidemark", "chdb", "clickhouse-connect", "confluent-kafka", "dagster", "pyarrow")


@dataclass(frozen=True)
class Spread:
    """Median of some runs, and how far they lie apart."""

    median: float
    least: float
    most: float

    def show(self, digits: int = 1) -> str:
        """As a person reads it: the median, then least and most in brackets."""
        middle = f"{self.median:,.{digits}f}"
        if self.least == self.most:
            return middle
        return f"{middle} ({self.least:,.{digits}f}-{self.most:,.{digits}f})"


def spread(values: Iterable[float]) -> Spread:
    """The spread of at least one value."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1])


def percentile(values: Iterable[float], percent: float) -> float:
    """The least value that so many percent of them do not exceed."""
    found = sorted(values)
    return found[max(0, -(-len(found) * percent // 100).__int__() - 1)]


def machine() -> dict[str, Any]:
    """What the figures hang on: processor, cores, memory, versions. No names, no paths."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe(facts: dict[str, Any]) -> str:
    """The machine in one line; says so when it was busy before the benchmark began."""
    line = (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, "
        f"Python {facts['python']}"
    )
    if facts["load_before"] > 0.5:
        line += f"; NOT QUIET: a load of {facts['load_before']} before the first step"
    return line


def table(title: str, first: str, *numbers: str) -> Table:
    """A table with one column of names and others of numbers."""
    made = Table(title=title, title_justify="left", title_style="bold")
    made.add_column(first)
    for name in numbers:
        made.add_column(name, justify="right")
    return made


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures to a file, if one was asked for."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
