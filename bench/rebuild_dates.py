"""Some dates rebuilt one after the other, in a process of their own, with a stopwatch.

Reads its settings from the environment, as every Tidemark process does, and prints a `Rebuilt` as
JSON. It is what `tidemark backfill rebuild` does, and a run of `rebuilt_events` for each date.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from uuid import uuid4

import click

from assets.pipeline.rebuild import rebuild
from assets.pipeline.worker import Worker
from bench.errors import run_command
from bench.usage import peak_bytes
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings


@dataclass(frozen=True)
class Rebuilt:
    """What a process measured of itself. Start-up is left out of the seconds only.

    `began` and `ended` are seconds since 1970.
    """

    dates: int
    rows: int
    began: float
    ended: float
    cpu_s: float
    peak_bytes: int


def rebuild_dates(settings: Settings, days: list[date]) -> Rebuilt:
    """Rebuild these dates."""
    worker = Worker(
        settings,
        open_ledger(settings.ledger),
        f"bench-{uuid4().hex[:8]}",
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    began, cpu = time.time(), time.process_time()
    rows = sum(rebuild(worker, day).rows or 0 for day in days)
    return Rebuilt(len(days), rows, began, time.time(), time.process_time() - cpu, peak_bytes())


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("days", nargs=-1, required=True)
def main(days: tuple[str, ...]) -> None:
    print(json.dumps(asdict(rebuild_dates(Settings(), [date.fromisoformat(day) for day in days]))))


if __name__ == "__main__":
    run_command(main, "bench.rebuild_dates")
