"""First records: when the broker appended the record at an offset, one record read for each lane.

Everything else about a topic is metadata; this is not, so it is read, with a fetch that is as small
as brokers make it. Records of transactions that are open or were aborted count too: what is asked
is how old the log is there, not what is in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from assets.pipeline.topic import QUIET

Lane = tuple[str, int]
"""A topic and one of its partitions."""

_LIMIT_S = 5.0
_POLL_S = 0.1


def appended_at(client: Mapping[str, str], starts: Mapping[Lane, int]) -> dict[Lane, int | None]:
    """Per lane, when the first record at that offset or after it was appended, in µs.

    None where no record follows. A lane of which nothing is heard in a few seconds, or whose
    offset is gone by now, is missing.
    """
    found: dict[Lane, int | None] = {}
    if not starts:
        return found
    consumer = Consumer(
        {
            **QUIET,
            **client,
            "group.id": "tidemark-status",  # required, never joined or committed to
            "enable.auto.commit": "false",
            "auto.offset.reset": "error",
            "isolation.level": "read_uncommitted",
            "enable.partition.eof": "true",
            # The lanes share this queue: while it is full, the others are not fetched.
            "queued.min.messages": "1000",
            "fetch.message.max.bytes": "1024",  # a larger record comes all the same, alone
            "fetch.queue.backoff.ms": "5",
            "fetch.wait.max.ms": "50",
        }
    )
    limit = time.monotonic() + _LIMIT_S
    waiting = set(starts)
    try:
        consumer.assign([TopicPartition(*lane, offset) for lane, offset in starts.items()])
        while waiting and time.monotonic() < limit:
            for message in consumer.consume(len(waiting), _POLL_S):
                topic, partition = message.topic(), message.partition()
                if topic is None or partition is None or (topic, partition) not in waiting:
                    continue
                lane = (topic, partition)
                error = message.error()
                if error is None:
                    found[lane] = _time_of(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    found[lane] = None
                waiting.discard(lane)
                consumer.incremental_unassign([TopicPartition(*lane)])
    except KafkaException:  # what is known so far is of use
        return found
    finally:
        consumer.close()
    return found


def _time_of(message: Message) -> int:
    return int(message.timestamp()[1]) * 1000
