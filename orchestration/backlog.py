"""Backlog: what is there for a micro-batch to do, asked of Kafka's metadata and the ledger.

No record is read, so that a tick which finds nothing costs a few milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import Engine

from assets.pipeline.batch import Batch
from assets.pipeline.plan import see_watermark, unplanned_starts
from assets.pipeline.topic import Topic
from orchestration.ledger.batches import planned_ends, unfinished_batches


@dataclass(frozen=True)
class Lane:
    """One partition of the topic: where it ends in Kafka, and up to where it is planned."""

    partition: int
    planned_end: int
    end: int

    @property
    def unread(self) -> int:
        """Offsets that no batch holds yet."""
        return self.end - self.planned_end


@dataclass(frozen=True)
class Backlog:
    """What waits. `arrival_date` is that of the oldest of it, None when nothing waits."""

    lanes: tuple[Lane, ...]
    unfinished: tuple[Batch, ...]
    arrival_date: date | None

    @property
    def unread(self) -> int:
        """Offsets that no batch holds yet, over all lanes."""
        return sum(lane.unread for lane in self.lanes)

    def __str__(self) -> str:
        words = [f"{self.unread:,} unread records"] if self.unread else []
        if self.unfinished:
            words.append(f"{len(self.unfinished):,} unfinished batches")
        return " and ".join(words) or "nothing unread"


def look(topic: Topic, ledger: Engine) -> Backlog:
    """The backlog now. Raises TransientError when Kafka is away, LogTruncated as planning does."""
    unfinished = unfinished_batches(ledger, topic.name)
    watermark = see_watermark(topic)
    identity = watermark.identity
    planned = planned_ends(ledger, identity.cluster_id, identity.topic_id)
    unread = unplanned_starts(topic, watermark, planned)
    dates = {batch.arrival_date for batch in unfinished}
    if unread:
        dates |= set(topic.arrival_dates(unread, datetime.now(UTC).date()).values())
    return Backlog(
        tuple(
            Lane(partition, unread.get(partition, high), high)
            for partition, high in sorted(watermark.highs.items())
        ),
        tuple(unfinished),
        min(dates, default=None),
    )
