"""Strangers: rows in ClickHouse of batches that nobody knows.

Neither the ledger has the batch, nor lineage in ClickHouse, which keeps what the ledger has
forgotten. Somebody has inserted them by hand, or another deployment works on the same tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from assets.pipeline.batch import Kind
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import batches_named

_TABLES = (Kind.EVENTS, Kind.DEAD_LETTERS)

_NOT_IN_LINEAGE = """
SELECT arrival_date, _batch_id, count() FROM {database:Identifier}.{table:Identifier}
WHERE ({all:Bool} OR arrival_date = {day:Date})
    AND _batch_id NOT IN (SELECT batch_id FROM {database:Identifier}.batches)
GROUP BY arrival_date, _batch_id ORDER BY arrival_date, _batch_id
"""


@dataclass(frozen=True)
class Strangers:
    """Rows of a date in a table that name this batch."""

    kind: Kind
    arrival_date: date
    batch_id: str
    rows: int


def strangers(worker: Worker, day: date | None) -> list[Strangers]:
    """Those of an arrival date, or all there are."""
    found = [one for kind in _TABLES for one in _not_in_lineage(worker, kind, day)]
    # Asked after ClickHouse: a batch is in the ledger before its first row is inserted.
    known = _known(worker, {one.batch_id for one in found})
    return [one for one in found if one.batch_id not in known]


def _not_in_lineage(worker: Worker, kind: Kind, day: date | None) -> list[Strangers]:
    asked = {
        "database": worker.settings.clickhouse_database,
        "table": kind.value,
        "all": day is None,
        "day": day or date(1970, 1, 1),
    }
    with named_errors(f"looking for rows of strange batches in {kind}"):
        rows = worker.clickhouse.query(_NOT_IN_LINEAGE, parameters=asked).result_rows
    return [Strangers(kind, when, str(batch_id), int(count)) for when, batch_id, count in rows]


def _known(worker: Worker, batch_ids: Iterable[str]) -> set[str]:
    return {batch.batch_id for batch in batches_named(worker.ledger, sorted(batch_ids))}
