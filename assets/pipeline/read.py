"""Read: exactly the planned ranges, as Arrow chunks.

    ranges ──assign──▶ consume a few hundred at a time ──▶ Chunk(records, headers on request)

A range is finished when the consumer's position has reached its end, not when some last offset
was seen: transaction markers and compacted records take up offsets that nobody delivers. A
start that Kafka no longer has is a Gap with its exact span, never a silent jump.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from assets.pipeline.batch import Range
from assets.pipeline.codes import Remedy, kafka_remedy
from assets.pipeline.columns import RAW
from assets.pipeline.errors import Gap, KafkaAway, KafkaRefused, TopicMissing, TopicReplaced
from assets.pipeline.topic import QUIET, Topic, kafka_away

CHUNK_RECORDS = 4_000
CHUNK_BYTES = 16 << 20
"""Records of a chunk, or bytes of their values, with which it is full: each chunk costs some
hundred calls, and large records are to stay out of memory."""

_AT_ONCE = 50
"""Records asked for at once: by no more than these a chunk can be over its bytes."""

_QUEUED_KBYTES = 16_384
_POLL_S = 0.1
_SILENCE_S = 30.0


@dataclass(frozen=True)
class Chunk:
    """Some records of a batch: a table of RAW, and the messages for what is rarely needed."""

    records: pa.RecordBatch
    messages: Sequence[Message]

    def headers(self, row: int) -> str:
        """A record's Kafka headers as JSON: a list of [name, base64 of the value or null]."""
        headers = cast(list[tuple[str, bytes | None]], self.messages[row].headers() or [])
        return json.dumps(
            [
                [name, None if value is None else base64.b64encode(value).decode()]
                for name, value in headers
            ]
        )


def check_readable(topic: Topic, topic_id: str, ranges: Iterable[Range]) -> None:
    """Raise TopicReplaced or Gap when the ranges cannot be read whole any more."""
    ranges = [range_ for range_ in ranges if len(range_)]
    if not ranges:
        return
    incarnation = _incarnation(topic)
    if incarnation != topic_id:
        raise TopicReplaced(
            f"topic {topic.name} was deleted{' and made anew' if incarnation else ''} since this "
            f"batch was planned: {', '.join(map(str, ranges))} of the old one cannot be read any "
            "more"
        )
    lows = topic.lows([range_.partition for range_ in ranges])
    missing = [
        Range(range_.partition, range_.start, min(range_.end, lows[range_.partition]))
        for range_ in ranges
        if lows[range_.partition] > range_.start
    ]
    if missing:
        raise Gap(
            "Kafka's retention took records before they were read: "
            f"{', '.join(map(str, missing))} "
            f"({sum(map(len, missing)):,} offsets of {topic.name})",
            missing,
        )


def lost_below(topic: Topic, topic_id: str, ranges: Iterable[Range]) -> dict[int, int]:
    """Per partition, the offset of its range below which Kafka has nothing any more."""
    if _incarnation(topic) != topic_id:
        return {range_.partition: range_.end for range_ in ranges}
    ranges = list(ranges)
    lows = topic.lows([range_.partition for range_ in ranges])
    highs = topic.highs([range_.partition for range_ in ranges])
    return {
        range_.partition: range_.end
        if highs[range_.partition] <= range_.start
        else min(range_.end, max(range_.start, lows[range_.partition]))
        for range_ in ranges
    }


def _incarnation(topic: Topic) -> str | None:
    """The topic's id now; None when it is not there."""
    try:
        return topic.identity().topic_id
    except TopicMissing:
        return None


def read_ranges(client: Mapping[str, str], topic: str, ranges: Sequence[Range]) -> Iterator[Chunk]:
    """Every record of the ranges, once, in order within a partition.

    Raises KafkaAway when Kafka falls silent or away, Gap when a record was taken by
    retention while reading.
    """
    open_ends = {range_.partition: range_.end for range_ in ranges if len(range_)}
    consumer = None
    try:
        consumer = Consumer(
            {
                **QUIET,
                **client,
                "group.id": f"tidemark-reader-{topic}",  # required, never joined or committed to
                "enable.auto.commit": "false",
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "enable.partition.eof": "true",
                "queued.max.messages.kbytes": _QUEUED_KBYTES,
                "fetch.queue.backoff.ms": "5",
                "fetch.wait.max.ms": "50",
            }
        )
        consumer.assign(
            [
                TopicPartition(topic, range_.partition, range_.start)
                for range_ in ranges
                if len(range_)
            ]
        )
        silent_s = 0.0
        while open_ends:
            messages = _consume(consumer)
            silent_s = 0.0 if messages else silent_s + _POLL_S
            if silent_s >= _SILENCE_S:
                raise KafkaAway(
                    f"Kafka delivered nothing of {topic} for {_SILENCE_S:.0f} s, "
                    f"with partitions {sorted(open_ends)} not read to their ends"
                )
            chunk, reached = _chunk(messages, open_ends)
            # The position moves over what is never delivered, so ask it at the tail of a lane.
            doubtful = (
                [p for p in open_ends if p not in reached]
                if not messages
                else list(_tails(messages, open_ends))
            )
            finished = reached | _positions_reached(consumer, topic, doubtful, open_ends)
            if chunk is not None:
                yield chunk
            if finished:
                consumer.incremental_unassign([TopicPartition(topic, p) for p in finished])
                for partition in finished:
                    open_ends.pop(partition, None)
    except KafkaException as error:
        raise _named(error.args[0]) from error
    finally:
        if consumer is not None:
            consumer.close()


def _consume(consumer: Consumer) -> list[Message]:
    """Messages for a chunk; fewer, or none, when no more come in time."""
    messages: list[Message] = []
    size = 0
    while len(messages) < CHUNK_RECORDS and size < CHUNK_BYTES:
        some = consumer.consume(_AT_ONCE, timeout=_POLL_S)
        messages += some
        size += sum(map(len, some))
        if len(some) < _AT_ONCE:
            break
    return messages


def _chunk(
    messages: Sequence[Message], open_ends: Mapping[int, int]
) -> tuple[Chunk | None, set[int]]:
    """The records among the messages that belong to open ranges; and lanes seen to their end."""
    kept: list[Message] = []
    reached: set[int] = set()
    for message in messages:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                continue
            raise _named(error)
        partition, offset = cast(int, message.partition()), cast(int, message.offset())
        end = open_ends.get(partition, 0)
        if offset < end:
            kept.append(message)
        if offset >= end - 1:
            reached.add(partition)
    reached &= open_ends.keys()
    if not kept:
        return None, reached
    records = pa.record_batch(
        [
            pa.array([message.partition() for message in kept], pa.int32()),
            pa.array([message.offset() for message in kept], pa.int64()),
            pa.array([message.timestamp()[1] for message in kept], pa.int64()),
            pa.array([message.key() for message in kept], pa.binary()),
            pa.array([message.value() for message in kept], pa.binary()),
        ],
        schema=RAW,
    )
    return Chunk(records, kept), reached


def _tails(messages: Sequence[Message], open_ends: Mapping[int, int]) -> set[int]:
    """Open lanes that are said to be at the end of their partition."""
    return {
        cast(int, message.partition())
        for message in messages
        if message.error() is not None and message.partition() in open_ends
    }


def _positions_reached(
    consumer: Consumer,
    topic: str,
    partitions: Sequence[int],
    open_ends: Mapping[int, int],
) -> set[int]:
    if not partitions:
        return set()
    positions = consumer.position([TopicPartition(topic, p) for p in partitions])
    return {at.partition for at in positions if at.offset >= open_ends[at.partition]}


def _named(error: KafkaError) -> Exception:
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        return Gap(f"Kafka no longer has a record of the range: {error.str()}")
    code = error.code()
    told = f"reading Kafka failed: {error.str()}"
    if kafka_remedy(code) in (Remedy.REFUSED, Remedy.UNKNOWN):
        return KafkaRefused(told, code)
    return kafka_away(told, code)
