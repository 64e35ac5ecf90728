"""What the demo prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from assets.pipeline.batch import Batch
from local_stack.stack import addresses
from orchestration.demo.proof import Account
from orchestration.settings import Settings

_STAGES = ("plan", "read", "validate", "deduplicate", "enrich", "stage", "load", "prove")


_TEXT_COLUMNS = {"", "station", "batch", "arrival date", "Dagster run", "ranges", "stage", "event"}


def show(console: Console, settings: Settings, account: Account) -> None:
    """Print the counts, the batches, what they cost, and the events by name, twice."""
    console.print(_counts(account))
    console.print(_batches(account))
    console.print(_costs(account.batches))
    for run_id, run in account.runs.items():
        if run.ended is not None:
            console.print(
                f"Dagster took {run.started - run.created:.1f} s to start run {run_id[:8]}, "
                f"and {run.ended - run.started:.1f} s to run its steps and checks"
            )
    console.print(_by_event("Events by name, from ClickHouse", account.by_event))
    console.print(_by_event("The same from the Parquet lake, by DuckDB", account.by_event_in_lake))
    for name, address in addresses(settings):
        console.print(f"{name:12} {address}", highlight=False)


def _counts(account: Account) -> Table:
    balance = account.balance
    table = _table("Every event, counted at every station", "station", "count", "")
    rows = [
        ("sent by the SDK", account.sent.taken, f"{account.distinct:,} events, some sent twice"),
        ("acknowledged (200)", account.sent.acknowledged, ""),
        ("in Kafka", account.in_kafka, "with what a broken producer wrote beside them"),
        ("staged", balance.ok, "rows in the lake's Parquet"),
        ("loaded", account.loaded, "rows counted in ClickHouse"),
        ("rejected", balance.rejected, f"{account.dead_letters:,} dead letters in ClickHouse"),
        ("duplicate", balance.duplicate, "the same uuid again: stored once"),
    ]
    for name, count, remark in rows:
        table.add_row(name, f"{count:,}", remark)
    return table


def _batches(account: Account) -> Table:
    table = _table(
        "Batches", "batch", "arrival date", "Dagster run", "offsets", "visible after", "ranges"
    )
    for batch in account.batches:
        asked = account.runs[batch.run_id].created
        visible = "" if batch.loaded_at is None else f"{batch.loaded_at / 1e6 - asked:.1f} s"
        table.add_row(
            batch.batch_id[:12],
            batch.arrival_date.isoformat(),
            batch.run_id[:8],
            f"{batch.offsets:,}",
            visible,
            " ".join(map(str, batch.ranges)),
        )
    return table


def _costs(batches: Sequence[Batch]) -> Table:
    table = _table(
        "What the micro-batches cost the worker", "stage", "seconds", "CPU s", "CPU µs a record"
    )
    records = sum(batch.staged.balance.delivered for batch in batches if batch.staged) or 1
    total_wall = total_cpu = 0.0
    for stage in _STAGES:
        timings = [batch.timings[stage] for batch in batches if stage in batch.timings]
        wall, cpu = sum(t.wall for t in timings), sum(t.cpu for t in timings)
        total_wall, total_cpu = total_wall + wall, total_cpu + cpu
        table.add_row(stage, f"{wall:.3f}", f"{cpu:.3f}", f"{cpu / records * 1e6:.1f}")
    table.add_row(
        "all", f"{total_wall:.3f}", f"{total_cpu:.3f}", f"{total_cpu / records * 1e6:.1f}"
    )
    return table


def _by_event(title: str, rows: Sequence[Sequence[Any]]) -> Table:
    table = _table(title, "event", "events", "people", "sessions")
    for event, *counts in rows:
        table.add_row(event, *(f"{count:,}" for count in counts))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT_COLUMNS else "right")
    return table
