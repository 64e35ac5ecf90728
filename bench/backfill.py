"""A backfill: what rebuilding dates of the table costs, by how many dates and how many at once.

    dates of the past, staged once ─▶ for each arm: an empty ClickHouse, a copy of the ledger
                                        ─▶ so many processes rebuild so many dates
                                        ─▶ peak memory of both, CPU seconds, rows a second

An arm counts only when ClickHouse holds exactly the rows that are staged, and nothing is left
beside them. Memory must not grow with the dates: a batch is one insert, and what was swapped in
is let go of. Small unless said otherwise; `--events 1000000` is a date as large as many have.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import click
from rich.console import Console
from sqlalchemy import URL

from assets.pipeline.clickhouse import connect, make_tables
from bench import options
from bench.children import Deadline, run_child
from bench.dates import Dates
from bench.errors import BenchFailed, run_command
from bench.figures import table, write_json
from bench.parts import Part, bench_settings, local_clickhouse, temporary_home
from bench.rebuild_dates import Rebuilt
from bench.usage import require_proc, usage_of

_MEGABYTE = 1 << 20
_NO_KAFKA = "127.0.0.1:9"  # a rebuild reads the lake only


@dataclass(frozen=True)
class Run:
    """One arm. Processor seconds are of all the processes; the worker's peak is the largest."""

    dates: int
    at_once: int
    rows: int
    wall_s: float
    worker_cpu_s: float
    server_cpu_s: float
    worker_peak_bytes: int
    server_peak_bytes: int


@click.command()
@click.option(
    "--dates",
    default="1,5,30",
    show_default=True,
    help="Dates to rebuild, one after the other, with commas between.",
)
@click.option(
    "--events",
    default=50_000,
    show_default=True,
    type=click.IntRange(min=1_000),
    help="Events of each date; a batch has TIDEMARK_BATCH_MAX_RECORDS of them at most.",
)
@click.option(
    "--at-once",
    default="2",
    show_default=True,
    help="How many at once, besides one: for the most dates, with commas between, or none.",
)
@options.limit(900.0)
@click.option(
    "--folder", type=click.Path(path_type=Path, exists=True), help="For the files; else /tmp."
)
@options.json_file
def main(
    dates: str,
    events: int,
    at_once: str,
    limit: float,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Measure rebuilds of dates from the lake: memory, processor time, rows a second."""
    require_proc()
    sizes = _numbers("--dates", dates)
    arms = [(size, 1) for size in sizes]
    if at_once != "none":
        arms += [(sizes[-1], number) for number in _numbers("--at-once", at_once)]
    facts, console = options.introduced()
    deadline = Deadline(limit)
    if folder is not None:
        tempfile.tempdir = str(folder)
    with temporary_home() as home:
        made = _make(home, sizes[-1], events, deadline)
        console.print(
            f"{made.dates:,} dates, {made.batches:,} batches, {made.rows:,} rows, "
            f"{made.bytes / 1e6:,.0f} MB staged",
            highlight=False,
        )
        runs = []
        for size, number in arms:
            runs.append(_measure(home, made, size, number, deadline))
            console.print(f"  {_told(runs[-1])}", highlight=False)
    _show(console, runs)
    write_json(
        json_file,
        {
            "benchmark": "backfill",
            "machine": facts,
            "made": asdict(made),
            "runs": [asdict(run) for run in runs],
        },
    )


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = sorted(int(number) for number in text.split(","))
    except ValueError:
        raise BenchFailed(f"{option} takes numbers with commas between, not {text!r}") from None
    if found[0] < 1:
        raise BenchFailed(f"{option}: {found[0]} is too few")
    return found


def _make(home: Path, dates: int, events: int, deadline: Deadline) -> Dates:
    settings = bench_settings(home, kafka_bootstrap_servers=_NO_KAFKA)
    needed = dates * events * 1_000  # the files, the table, and a date of each beside it
    if shutil.disk_usage(home).free < needed:
        raise BenchFailed(f"{needed / 1e9:.0f} GB are needed in {home.parent}: see --folder")
    printed = run_child(
        "bench.dates",
        *("--dates", str(dates), "--events", str(events)),
        log=home / "dates.log",
        deadline=deadline,
        env=settings.environment(),
    )
    return Dates(**printed)


def _measure(home: Path, made: Dates, dates: int, at_once: int, deadline: Deadline) -> Run:
    """Rebuild the first so many dates in a fresh ClickHouse, whose data are removed afterwards."""
    first = date.fromisoformat(made.first)
    days = [(first + timedelta(days=number)).isoformat() for number in range(dates)]
    with tempfile.TemporaryDirectory(prefix="arm-", dir=home) as folder:
        ledger = Path(folder) / "ledger.db"
        shutil.copy(home / "ledger.db", ledger)
        url = URL.create("sqlite", database=str(ledger)).render_as_string()
        own = {"lake_uri": str(home / "lake"), "ledger_url": url}
        with local_clickhouse(Path(folder), _NO_KAFKA, **own) as server:
            settings = server.settings
            client = connect(settings.clickhouse_address, settings.clickhouse_user, "")
            make_tables(client, settings.clickhouse_database)
            before = usage_of(server.pid)
            with ThreadPoolExecutor(at_once) as threads:
                done = list(
                    threads.map(
                        lambda number: _rebuild(server, days[number::at_once], number, deadline),
                        range(min(at_once, dates)),
                    )
                )
            after = usage_of(server.pid)
            rows = made.rows // made.dates * dates
            for name, wanted in (("events", rows), ("events_shadow", 0)):
                query = f"SELECT count() FROM {settings.clickhouse_database}.{name}"
                found = int(str(client.command(query)))
                if found != wanted:
                    raise BenchFailed(f"{name} holds {found:,} rows and was to hold {wanted:,}")
            client.close()
    return Run(
        dates=dates,
        at_once=at_once,
        rows=rows,
        wall_s=max(one.ended for one in done) - min(one.began for one in done),
        worker_cpu_s=sum(one.cpu_s for one in done),
        server_cpu_s=after.cpu_s - before.cpu_s,
        worker_peak_bytes=max(one.peak_bytes for one in done),
        server_peak_bytes=after.peak_bytes,
    )


def _rebuild(server: Part, days: list[str], number: int, deadline: Deadline) -> Rebuilt:
    printed = run_child(
        "bench.rebuild_dates",
        *days,
        log=server.settings.home / f"rebuild-{number}.log",
        deadline=deadline,
        env=server.settings.environment(),
    )
    return Rebuilt(**printed)


def _told(run: Run) -> str:
    return (
        f"{run.dates:,} dates, {run.at_once} at once: {run.wall_s:,.1f} s, "
        f"{run.rows / run.wall_s:,.0f} rows a second"
    )


def _show(console: Console, runs: list[Run]) -> None:
    made = table(
        "Dates rebuilt from the lake",
        "dates",
        *("at once", "rows/s", "CPU: workers", "ClickHouse"),
        *("MB: a worker", "ClickHouse"),
    )
    for run in runs:
        made.add_row(
            f"{run.dates:,}",
            f"{run.at_once:,}",
            f"{run.rows / run.wall_s:,.0f}",
            f"{run.worker_cpu_s / run.rows * 1e6:.1f}",
            f"{run.server_cpu_s / run.rows * 1e6:.1f}",
            f"{run.worker_peak_bytes / _MEGABYTE:,.0f}",
            f"{run.server_peak_bytes / _MEGABYTE:,.0f}",
        )
    console.print(made)
    console.print(
        "CPU: user and system seconds a million rows. Memory: the peak of one process. One date "
        "has TIDEMARK_BATCH_MAX_RECORDS rows an insert at most.",
        highlight=False,
    )


if __name__ == "__main__":
    run_command(main, "bench.backfill")
