"""Work that is measured in a process of its own: its memory and processor time are its alone.

Data flow: a module of this package and its arguments → a process → the JSON object it prints.
What it says on stderr goes to a log in the temporary home and is shown when it fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchFailed

REPOSITORY = Path(__file__).resolve().parent.parent
_LAST_LINES = 12


class Deadline:
    """The moment at which the whole benchmark is given up."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._end = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Seconds left. Raises BenchFailed when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise BenchFailed(
                f"not done after {self.limit_s:.0f} s: give it more with --limit, or fewer events"
            )
        return left


@dataclass(frozen=True)
class Carried:
    """What a process measured of itself while it carried records from Kafka into ClickHouse.

    Start-up and imports are left out of the seconds, not out of the memory. `stages` maps a stage
    to its wall and processor seconds. Its `stagers` are counted with it: their start, too.
    """

    records: int
    rows: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    batches: int
    stagers: int = 0
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def run_child(
    module: str,
    *arguments: str,
    log: Path,
    deadline: Deadline,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `python -m module`; gives the object it printed. Raises BenchFailed when it fails."""
    with log.open("ab") as errors:
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(env or {})},
                cwd=REPOSITORY,
                timeout=deadline.left_s(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            deadline.left_s()
            raise
    if done.returncode:
        last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        raise BenchFailed(f"{module} ended with exit code {done.returncode}:\n" + "\n".join(last))
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed
