"""Rejects of a date: how many of its records are dead letters, for which reasons, and of how many.

From what was registered of each batch's files, a row a file, so that asking costs little however
many batches a date has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import Engine, Select, and_, func, select

from assets.pipeline.batch import LOADED, Batch, Kind
from orchestration.ledger.connection import reading
from orchestration.ledger.tables import batches, redrive_counts, redrives, rejections, staged_files


@dataclass(frozen=True)
class Rejects:
    """Of so many records, how many were rejected, and for which reasons. Tombstones count nothing.

    `settled` are those of the rejected that a redrive has made events or duplicates since.
    """

    records: int = 0
    rejected: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    settled: int = 0

    @property
    def left(self) -> int:
        """Records that are dead letters still."""
        return self.rejected - self.settled

    @property
    def percent(self) -> float:
        """Their share."""
        return 100.0 * self.left / self.records if self.records else 0.0


def rejects_of(carried: Iterable[Batch]) -> Rejects:
    """Those of some batches; of what redrives settled, the events. Redrives count nothing."""
    records = rejected = settled = 0
    reasons: dict[str, int] = {}
    for batch in carried:
        if batch.staged is None or batch.is_redrive:
            continue
        balance = batch.staged.balance
        records += balance.delivered - balance.tombstone
        rejected += balance.rejected
        settled += balance.redriven
        for reason, count in batch.staged.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return Rejects(records, rejected, reasons, settled)


def rejects_of_date(ledger: Engine, arrival_date: date, *topics: str) -> Rejects:
    """Those of all batches of an arrival date.

    A redrive's records are counted where they were read; what it could mend is settled.
    """
    of_date = and_(batches.c.topic.in_(topics), batches.c.arrival_date == arrival_date)
    with reading(ledger, snapshot=True) as connection:
        rows = {
            kind: int(count)
            for kind, count in connection.execute(
                _read_from_kafka(
                    select(staged_files.c.kind, func.sum(staged_files.c.rows))
                    .join(batches, batches.c.batch_id == staged_files.c.batch_id)
                    .where(of_date)
                    .group_by(staged_files.c.kind)
                )
            )
        }
        reasons = {
            reason: int(count)
            for reason, count in connection.execute(
                _read_from_kafka(
                    select(rejections.c.reason, func.sum(rejections.c.records))
                    .join(batches, batches.c.batch_id == rejections.c.batch_id)
                    .where(of_date)
                    .group_by(rejections.c.reason)
                )
            )
        }
        settled = connection.scalar(
            select(func.sum(redrive_counts.c.events + redrive_counts.c.duplicates))
            .join(batches, batches.c.batch_id == redrive_counts.c.batch_id)
            .where(of_date, batches.c.state.in_(LOADED))
        )
    return Rejects(
        sum(rows.values()),
        rows.get(Kind.DEAD_LETTERS, 0),
        reasons,
        int(settled or 0),
    )


def _read_from_kafka(wanted: Select[str, int]) -> Select[str, int]:
    redrive = select(redrives.c.batch_id).where(redrives.c.batch_id == batches.c.batch_id)
    return wanted.where(~redrive.exists())
