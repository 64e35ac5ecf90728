"""A topic's `max.message.bytes`: what Kafka takes as one batch of records, large or small."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
)

from capture_api.kafka.client_log import client_log
from orchestration.settings import Settings

ASK_TIMEOUT_SECONDS = 5.0

log = logging.getLogger("tidemark.capture.kafka")


def topic_limits(settings: Settings, topics: Iterable[str]) -> dict[str, int]:
    """The limits in bytes of those topics where they can be learnt (it needs DescribeConfigs).

    Blocks.
    """
    resources = {topic: ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics}
    configuration: dict[str, str | int | float | bool] = {**settings.kafka_client}
    admin = AdminClient(configuration, logger=client_log())
    limits: dict[str, int] = {}
    try:
        futures = admin.describe_configs(
            list(resources.values()), request_timeout=ASK_TIMEOUT_SECONDS
        )
    except KafkaException as error:
        log.warning("max.message.bytes of the topics cannot be read: %s", error)
        return limits
    for topic, resource in resources.items():
        try:
            entries = futures[resource].result(ASK_TIMEOUT_SECONDS + 1)
            limits[topic] = int(entries["max.message.bytes"].value)
        except (KafkaException, TimeoutError, KeyError, TypeError, ValueError) as error:
            log.warning(
                "max.message.bytes of the topic %r cannot be read; should it be below 1 MB, set "
                "batch.size in TIDEMARK_KAFKA_OPTIONS: %s",
                topic,
                error,
            )
    return limits
