"""Completeness, judged: does everything that was received get queryable without anybody's help?

What workers load, or try again by themselves, moves the watermark on. A batch that waits for a
person, a lane that cannot be read on, and records that Kafka has forgotten do not: the watermark
stands before them, or will come to stand there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from assets.pipeline.batch import Batch
from assets.pipeline.errors import KafkaRefusesUs, TransientError
from orchestration.standing import Standing


def what_stands_still(standing: Standing, waiting: Iterable[Batch]) -> list[str]:
    """What only a person can move, or what keeps the watermark from being told; none: all moves.

    `waiting` are the batches that wait for a person. Redrives among them hold nothing back: their
    records were accounted for long ago.
    """
    found = list(_standing_still(standing, waiting))
    if not found and standing.complete.before is None:
        found.append(standing.complete.held_by)
    return found


def _standing_still(standing: Standing, waiting: Iterable[Batch]) -> Iterator[str]:
    for batch in waiting:
        if not batch.is_redrive:
            yield (
                f"batch {batch.batch_id} of {batch.arrival_date} is {batch.state} and waits for a "
                f"person: {batch.note}"
            )
    for topic in standing.topics:
        if topic.trouble is not None and not topic.is_missing:
            passes = isinstance(topic.trouble, TransientError)
            if not passes or isinstance(topic.trouble, KafkaRefusesUs):
                yield f"topic {topic.topic} cannot be read on: {topic.trouble}"
        elif topic.lost:
            yield (
                f"Kafka's retention has taken {topic.lost:,} records of topic {topic.topic} before "
                "they were read: they become a gap, see `tidemark gaps`"
            )
