"""Kafka's errors about a topic, and which topic it was.

librdkafka tells the topic in the message, not in the error. Where it matters to whom the error is
told, the error is replaced by one with the same code whose text is the topic's name.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError

MISSING_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
NAMING_TOPIC = MISSING_TOPIC | {KafkaError.MSG_SIZE_TOO_LARGE}
"""Errors whose `str()` is the topic's name once they are with a delivery."""


def naming_topic(error: KafkaError, topic: Any) -> KafkaError:
    """The error, or one whose text is the topic's name."""
    return KafkaError(error.code(), topic) if error.code() in NAMING_TOPIC and topic else error
