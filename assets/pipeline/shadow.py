"""The tables beside `events` in which dates are made anew and kept: the same columns, no readers.

    events_shadow    what a rebuild fills and proves before it takes a date's place
    events_previous  what it has taken the place of, until that is let go of

Partitions move only between equal tables: where `events` has another form by now, these are made
anew in it, unless that would take what a date still needs.
"""

from __future__ import annotations

from datetime import date

from assets.pipeline.clickhouse import named_errors
from assets.pipeline.errors import BatchError
from assets.pipeline.worker import Worker
from orchestration.ledger.rebuilds import OPEN, all_rebuilds

SHADOW, PREVIOUS = "events_shadow", "events_previous"


def make_both(worker: Worker) -> None:
    """Shadow and previous, where they are missing."""
    database = worker.settings.clickhouse_database
    for table in (SHADOW, PREVIOUS):
        with named_errors(f"making {table}"):
            worker.clickhouse.command(
                f"CREATE TABLE IF NOT EXISTS {database}.{table} AS {database}.events"
            )


def make_both_anew(worker: Worker, day: date) -> None:
    """The same, in the form that `events` has now: partitions move only between equal tables.

    Raises BatchError where that would take what another date still needs.
    """
    database, form = worker.settings.clickhouse_database, _form(worker, "events")
    others = [
        rebuild.arrival_date
        for rebuild in all_rebuilds(worker.ledger, worker.settings.topic)
        if rebuild.state in OPEN and rebuild.arrival_date != day
    ]
    for table in (SHADOW, PREVIOUS):
        if _form(worker, table) in ("", form):
            continue
        if table == SHADOW and others:
            raise BatchError(
                f"{table} has not the form of events any more, and {others[0]} is being rebuilt in "
                f"it: `tidemark backfill cancel {others[0]}` first"
            )
        with named_errors(f"making {table} anew"):
            if table == PREVIOUS and _count(worker, table):
                raise BatchError(
                    f"{database}.{table} keeps replaced dates in a form that events has not any "
                    f"more: `DROP TABLE {database}.{table}` lets go of them, then rebuild again"
                )
            worker.clickhouse.command(f"DROP TABLE {database}.{table} SYNC")
    make_both(worker)


def _count(worker: Worker, table: str) -> int:
    database = worker.settings.clickhouse_database
    return int(str(worker.clickhouse.command(f"SELECT count() FROM {database}.{table}")))


def _form(worker: Worker, table: str) -> str:
    with named_errors(f"looking at {table}"):
        rows = worker.clickhouse.query(
            "SELECT substring(create_table_query, position(create_table_query, '(')) "
            "FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            parameters={"database": worker.settings.clickhouse_database, "table": table},
        ).result_rows
    return str(rows[0][0]) if rows else ""
