"""The topic's `max.message.bytes`: what Kafka takes as one batch of records, large or small."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
)

from capture_api.kafka.client_log import client_log
from orchestration.settings import Settings

ASK_TIMEOUT_SECONDS = 5.0

log = logging.getLogger("tidemark.capture.kafka")


def topic_limit(settings: Settings) -> int | None:
    """The limit in bytes, or None where it cannot be learnt (it needs DescribeConfigs). Blocks."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, settings.topic)
    configuration: dict[str, str | int | float | bool] = {**settings.kafka_client}
    admin = AdminClient(configuration, logger=client_log())
    try:
        futures = admin.describe_configs([resource], request_timeout=ASK_TIMEOUT_SECONDS)
        entries = futures[resource].result(ASK_TIMEOUT_SECONDS + 1)
    except (KafkaException, TimeoutError) as error:
        log.warning(
            "the topic's max.message.bytes cannot be read; should it be below 1 MB, set batch.size "
            "in TIDEMARK_KAFKA_OPTIONS: %s",
            error,
        )
        return None
    return int(entries["max.message.bytes"].value)
