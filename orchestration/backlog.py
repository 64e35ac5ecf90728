"""Backlog: what is there for a micro-batch to do, asked of Kafka's metadata and the ledger.

No record is read, so that a tick which finds nothing costs a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import Engine

from assets.pipeline.batch import Batch, State
from assets.pipeline.errors import BatchError, KafkaAway, LaneTrouble, TopicMissing
from assets.pipeline.plan import see_watermark, unplanned_starts
from assets.pipeline.topic import Topic
from orchestration.ledger.batches import planned_ends, unfinished_batches


@dataclass(frozen=True)
class Lane:
    """One partition of a topic: where it ends in Kafka, and up to where it is planned."""

    partition: int
    planned_end: int
    end: int

    @property
    def unread(self) -> int:
        """Offsets that no batch holds yet."""
        return self.end - self.planned_end


@dataclass(frozen=True)
class TopicBacklog:
    """What waits of one topic, or why that cannot be said.

    `arrival_date` is that of the oldest record which no batch holds.
    """

    topic: str
    lanes: tuple[Lane, ...] = ()
    arrival_date: date | None = None
    trouble: BatchError | None = None

    @property
    def unread(self) -> int:
        """Offsets that no batch holds yet, over all lanes."""
        return sum(lane.unread for lane in self.lanes)

    @property
    def is_missing(self) -> bool:
        """Whether nobody has made the topic."""
        return isinstance(self.trouble, TopicMissing)


@dataclass(frozen=True)
class Backlog:
    """What waits of all topics. `arrival_date` is that of the oldest of it, None for nothing."""

    topics: tuple[TopicBacklog, ...]
    unfinished: tuple[Batch, ...]
    arrival_date: date | None

    @property
    def unread(self) -> int:
        """Offsets that no batch holds yet."""
        return sum(topic.unread for topic in self.topics)

    @property
    def troubles(self) -> list[BatchError]:
        """What keeps topics from being read. One that nobody has made is no trouble."""
        return [
            topic.trouble
            for topic in self.topics
            if topic.trouble is not None and not topic.is_missing
        ]

    def __str__(self) -> str:
        words = [f"{self.unread:,} unread records"] if self.unread else []
        if self.unfinished:
            words.append(f"{len(self.unfinished):,} unfinished batches")
        return " and ".join(words) or "nothing unread"


def look(topics: Collection[Topic], ledger: Engine) -> Backlog:
    """The backlog now; the first topic is the main one.

    Raises KafkaAway when that one cannot be seen, unless there is something to load meanwhile.
    Trouble with others, and with lanes, is told.
    """
    unfinished = unfinished_batches(ledger, *(topic.name for topic in topics))
    seen: list[TopicBacklog] = []
    for topic in topics:
        try:
            seen.append(look_at_topic(topic, ledger))
        except KafkaAway as error:
            if not seen:
                staged = [batch for batch in unfinished if batch.state is not State.PLANNED]
                if not staged:
                    raise
                first = min(batch.arrival_date for batch in staged)
                return Backlog((TopicBacklog(topic.name, trouble=error),), tuple(staged), first)
            seen.append(TopicBacklog(topic.name, trouble=error))
        except LaneTrouble as error:
            seen.append(TopicBacklog(topic.name, trouble=error))
    dates = [batch.arrival_date for batch in unfinished]
    dates += [topic.arrival_date for topic in seen if topic.arrival_date is not None]
    return Backlog(tuple(seen), tuple(unfinished), min(dates, default=None))


def look_at_topic(topic: Topic, ledger: Engine) -> TopicBacklog:
    """What waits of one topic. Raises KafkaAway, and LogTruncated as planning does."""
    watermark = see_watermark(topic)
    identity = watermark.identity
    planned = planned_ends(ledger, identity.cluster_id, identity.topic_id)
    unread = unplanned_starts(topic, watermark, planned)
    dates = topic.arrival_dates(unread, datetime.now(UTC).date()) if unread else {}
    return TopicBacklog(
        topic.name,
        tuple(
            Lane(partition, unread.get(partition, high), high)
            for partition, high in sorted(watermark.highs.items())
        ),
        min(dates.values(), default=None),
    )
