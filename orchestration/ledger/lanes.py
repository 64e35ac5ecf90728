"""Lanes in the ledger: up to where each is planned, and what of that is not loaded yet."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Engine, select

from assets.pipeline.batch import Range, State
from orchestration.ledger.batches import NOT_LOADED
from orchestration.ledger.connection import reading
from orchestration.ledger.tables import batches, lanes, ranges


@dataclass(frozen=True)
class OpenRange:
    """Offsets of a batch that is not loaded, without those that a person accepted as lost."""

    range: Range
    state: State
    is_unread: bool  # Kafka may be the only place that has them


@dataclass(frozen=True)
class Lane:
    """One partition of a topic: where planning stands, and the ranges below that are open."""

    planned_end: int
    open: tuple[OpenRange, ...] = ()

    @property
    def loaded_end(self) -> int:
        """The offset below which everything is loaded, or accounted for."""
        return min((each.range.start for each in self.open), default=self.planned_end)


def lanes_of(ledger: Engine, cluster_id: str, topic_id: str) -> dict[int, Lane]:
    """The lanes of a topic incarnation by partition, all as of one moment."""
    found: dict[int, list[OpenRange]] = defaultdict(list)
    with reading(ledger, snapshot=True) as connection:
        ends = connection.execute(
            select(lanes.c.partition, lanes.c.planned_end).where(
                lanes.c.cluster_id == cluster_id, lanes.c.topic_id == topic_id
            )
        ).all()
        rows = connection.execute(
            select(
                *(ranges.c.partition, ranges.c.start, ranges.c.end, ranges.c.skip_to),
                *(batches.c.state, batches.c.staged_at),
            )
            .join(batches, batches.c.batch_id == ranges.c.batch_id)
            .where(
                batches.c.cluster_id == cluster_id,
                batches.c.topic_id == topic_id,
                batches.c.state.in_(NOT_LOADED),
            )
            .order_by(ranges.c.start)
        ).all()
    for row in rows:
        start = max(row.start, row.skip_to or 0)
        if start < row.end:
            found[row.partition].append(
                OpenRange(
                    Range(row.partition, start, row.end),
                    State(row.state),
                    is_unread=row.staged_at is None,
                )
            )
    return {partition: Lane(end, tuple(found[partition])) for partition, end in ends}
