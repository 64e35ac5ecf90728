"""Commit: tell Kafka how far loading has come, for those who watch the lag of a consumer group.

Nothing here plans from it, and losing it does no harm, so failing to commit is only reported.
"""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from assets.pipeline.topic import QUIET

_WAIT_MS = 10_000
"""How long a commit waits for a Kafka that is away, which is as long as a session lasts."""


def group_id(topic: str) -> str:
    """The consumer group whose offsets show how far a topic is loaded."""
    return f"tidemark-{topic}"


def commit_offsets(
    client: Mapping[str, str], topic: str, ends: Mapping[int, int], batch_id: str
) -> str | None:
    """Commit ends by partition, with a batch as a breadcrumb; gives what went wrong, or None."""
    consumer = None
    try:
        consumer = Consumer(
            {
                **QUIET,
                **client,
                "group.id": group_id(topic),
                "enable.auto.commit": "false",
                "session.timeout.ms": _WAIT_MS,
            }
        )
        committed = consumer.commit(
            offsets=[
                TopicPartition(topic, partition, end, batch_id) for partition, end in ends.items()
            ],
            asynchronous=False,
        )
        errors = [str(at.error) for at in committed or [] if at.error is not None]
        return errors[0] if errors else None
    except KafkaException as error:
        return str(error.args[0].str())
    finally:
        if consumer is not None:
            consumer.close()
