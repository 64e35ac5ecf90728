"""What librdkafka is told: ours first, then the operator's, then what a 200 and a 503 hang on."""

from __future__ import annotations

from confluent_kafka import Producer

from capture_api.kafka.client_log import client_log
from capture_api.wire.payload import MAX_EVENTS
from orchestration.settings import Settings

QUEUE_MESSAGES = 4 * MAX_EVENTS
BATCH_BYTES = 1_000_000
"""A batch of records that librdkafka fills; less where the topic takes less."""

Configuration = dict[str, str | int | float | bool]


def configuration(settings: Settings) -> Configuration:
    """The producer's configuration."""
    timeout_ms = settings.capture_ack_timeout_ms
    # With a spool every record that waits is held twice.
    queue_bytes = settings.capture_max_inflight_bytes // (2 if settings.capture_spool_dir else 1)
    return {
        "client.id": "tidemark-capture",
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "batch.size": BATCH_BYTES,
        "linger.ms": settings.capture_linger_ms,
        "topic.metadata.propagation.max.ms": min(1_000, timeout_ms),
        "queue.buffering.max.messages": QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": queue_bytes // 1024,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1_000,
        "log.connection.close": False,
        **settings.kafka_client,
        # What follows cannot be set from outside: the meaning of a 200 and of a 503 hangs on it.
        "acks": "all",
        "enable.idempotence": True,
        # Past this the client has its 503, and the records should not arrive any more.
        "delivery.timeout.ms": timeout_ms,
        "request.timeout.ms": timeout_ms,
    }


def try_configuration(settings: Settings) -> None:
    """Raise KafkaException if a producer of this configuration could not be made."""
    Producer(configuration(settings), logger=client_log())
