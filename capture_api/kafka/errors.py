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

FOR_GOOD = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.POLICY_VIOLATION,
    }
)
"""Errors of a record that no other try would help."""
OF_THE_TOPIC = MISSING_TOPIC | {KafkaError.TOPIC_AUTHORIZATION_FAILED}
"""Errors that last until somebody mends the topic; other topics are well."""
SPOOL_IS_NO_HELP = NAMING_TOPIC | FOR_GOOD | OF_THE_TOPIC
"""Errors that waiting on a disk would not cure: the client is told instead."""


def naming_topic(error: KafkaError, topic: Any) -> KafkaError:
    """The error, or one whose text is the topic's name."""
    return KafkaError(error.code(), topic) if error.code() in NAMING_TOPIC and topic else error
