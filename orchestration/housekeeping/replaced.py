"""Replaced: what a rebuild has replaced, partitions and files, is kept for a while, then let go."""

from __future__ import annotations

from contextlib import suppress
from datetime import date

from assets.pipeline.clickhouse import named_errors
from assets.pipeline.errors import LeaseHeld
from assets.pipeline.rebuild import PREVIOUS, SHADOW, rebuild_lease
from assets.pipeline.remaking import tidy
from assets.pipeline.swap import drop_partition
from assets.pipeline.worker import Worker
from orchestration.ledger.connection import now_us
from orchestration.ledger.rebuilds import OPEN, last_rebuild
from orchestration.ledger.remakes import dates_with_remakes

_DATES = """
SELECT DISTINCT arrival_date FROM {database:Identifier}.{table:Identifier} ORDER BY arrival_date
"""
_DAY_US = 86_400_000_000


def let_go_of_replaced(worker: Worker, keep_days: int) -> list[date]:
    """Drop what rebuilds replaced longer ago than that, and what none needs; gives the dates.

    What a rebuild that is under way has filled or kept stays, whatever its age. Files whose place
    others took go with the partition that was loaded from them.
    """
    gone = []
    topic = worker.settings.topic
    for table in (PREVIOUS, SHADOW):
        for day in _dates(worker, table):
            with suppress(LeaseHeld), rebuild_lease(worker, day):
                rebuild = last_rebuild(worker.ledger, topic, day)
                if rebuild is None:
                    continue  # of a Tidemark with another ledger
                is_kept = table == PREVIOUS and rebuild.moved_at > now_us() - keep_days * _DAY_US
                if rebuild.state in OPEN or is_kept:
                    continue
                drop_partition(worker, table, day)
                gone.append(day)
    kept = set(_dates(worker, PREVIOUS))
    for day in dates_with_remakes(worker.ledger, topic):
        with suppress(LeaseHeld), rebuild_lease(worker, day) as lease:
            tidy(worker, lease, day, can_be_returned=day in kept)
    return gone


def _dates(worker: Worker, table: str) -> list[date]:
    database = worker.settings.clickhouse_database
    with named_errors(f"looking at {table}"):
        if not worker.clickhouse.command(f"EXISTS TABLE {database}.{table}"):
            return []
        rows = worker.clickhouse.query(
            _DATES, parameters={"database": database, "table": table}
        ).result_rows
    return [day for (day,) in rows]
