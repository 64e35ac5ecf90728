"""Replaced: what a rebuild has replaced, partitions and files, is kept for a while, then let go."""

from __future__ import annotations

from contextlib import suppress
from datetime import date

from assets.pipeline.clickhouse import named_errors
from assets.pipeline.date_anew import rebuild_lease
from assets.pipeline.errors import LeaseHeld
from assets.pipeline.remaking import tidy
from assets.pipeline.shadow import PREVIOUS, SHADOW
from assets.pipeline.swap import drop_partition, rows_by_batch
from assets.pipeline.worker import Worker
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.connection import now_us
from orchestration.ledger.rebuilds import OPEN, Rebuild, last_rebuild
from orchestration.ledger.remakes import dates_with_remakes

_DATES = """
SELECT DISTINCT arrival_date FROM {database:Identifier}.{table:Identifier} ORDER BY arrival_date
"""
_DAY_US = 86_400_000_000

REBUILT = "it is being rebuilt"


def let_go_of_replaced(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Drop what rebuilds replaced longer ago than that, and what none needs.

    What a rebuild that is under way has filled or kept stays, whatever its age. Files whose place
    others took go with the partition that was loaded from them.
    """
    tally = Tally("replaced dates")
    topic = worker.settings.topic
    for table in (PREVIOUS, SHADOW):
        for day in dates_in(worker, table):
            if not tally.has_time():
                break
            with suppress(LeaseHeld), rebuild_lease(worker, day):
                rebuild = last_rebuild(worker.ledger, topic, day)
                if rebuild is None:
                    continue  # of a Tidemark with another ledger
                is_kept = table == PREVIOUS and _is_young(rebuild, keep_days)
                if rebuild.state in OPEN:
                    tally.kept[REBUILT] += 1
                elif not is_kept:
                    tally.add(1)
                    if not dry_run:
                        drop_partition(worker, table, day)
                        worker.say(f"{day} of {table} is dropped")
    for day in () if dry_run else dates_with_remakes(worker.ledger, topic):
        if not tally.has_time():
            break
        with suppress(LeaseHeld), rebuild_lease(worker, day) as lease:
            tidy(worker, lease, day, can_be_returned=_is_kept(worker, day))
    return tally


def dates_that_stay(worker: Worker) -> list[date]:
    """The dates of which something replaced is kept still after this is done."""
    topic, keep_days = worker.settings.topic, worker.settings.keep_replaced_days
    stay = []
    for day in dates_in(worker, PREVIOUS):
        rebuild = last_rebuild(worker.ledger, topic, day)
        if rebuild is None or rebuild.state in OPEN or _is_young(rebuild, keep_days):
            stay.append(day)
    return stay


def dates_in(worker: Worker, table: str) -> list[date]:
    """The arrival dates of which a table has rows; none where there is no such table."""
    database = worker.settings.clickhouse_database
    if not _exists(worker, table):
        return []
    with named_errors(f"looking at {table}"):
        rows = worker.clickhouse.query(
            _DATES, parameters={"database": database, "table": table}
        ).result_rows
    return [day for (day,) in rows]


def _is_young(rebuild: Rebuild, keep_days: int) -> bool:
    """Whether what it has replaced can be brought back still."""
    return rebuild.moved_at > now_us() - keep_days * _DAY_US


def _is_kept(worker: Worker, day: date) -> bool:
    """Whether what a date's last rebuild has replaced is there. The caller holds its lease."""
    return _exists(worker, PREVIOUS) and bool(rows_by_batch(worker, PREVIOUS, day))


def _exists(worker: Worker, table: str) -> bool:
    database = worker.settings.clickhouse_database
    with named_errors(f"looking at {table}"):
        return bool(worker.clickhouse.command(f"EXISTS TABLE {database}.{table}"))
