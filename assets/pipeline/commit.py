"""Commit: tell Kafka how far loading has come, for those who watch the lag of a consumer group.

Nothing here plans from it, and losing it does no harm, so failing to commit is only reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition

from assets.pipeline.batch import Batch

_TIMEOUT_S = 10.0


def group_id(topic: str) -> str:
    """The consumer group whose offsets show how far a topic is loaded."""
    return f"tidemark-{topic}"


def commit_offsets(client: Mapping[str, str], batches: Sequence[Batch]) -> str | None:
    """Commit the ends of loaded batches of one topic; gives what went wrong, or None."""
    ends: dict[int, tuple[int, str]] = {}
    for batch in batches:
        for range_ in batch.ranges:
            if range_.end > ends.get(range_.partition, (0, ""))[0]:
                ends[range_.partition] = (range_.end, batch.batch_id)
    if not ends:
        return None
    topic = batches[0].topic
    consumer = Consumer({**client, "group.id": group_id(topic), "enable.auto.commit": "false"})
    try:
        committed = consumer.commit(
            offsets=[
                TopicPartition(topic, partition, end, batch_id)
                for partition, (end, batch_id) in ends.items()
            ],
            asynchronous=False,
        )
        errors = [str(at.error) for at in committed or [] if at.error is not None]
        return errors[0] if errors else None
    except KafkaException as error:
        return str(error.args[0].str())
    finally:
        consumer.close()
