"""Topics and readiness, over the Kafka protocol: the same for the local broker and any other.

Data flow: bootstrap servers in, a `Topic` (name, topic id, partitions) or one clear reason out.
Invariant: `ensure_topic` never alters a topic that exists; one that lacks what Tidemark relies on
is refused.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
)

DEFAULT_PARTITIONS = 8
# The arrival date of a record is the day on which the broker appended it.
REQUIRED_CONFIG: Mapping[str, str] = {"message.timestamp.type": "LogAppendTime"}
REQUEST_LIMIT_S = 10.0
PROBE_LIMIT_S = 2.0
POLL_PAUSE_S = 0.05


class KafkaNotReady(Exception):
    """No broker answered before the limit; the text has the last reason."""


class TopicMismatch(Exception):
    """A topic exists that Tidemark cannot use as it is; the text says what to change."""


@dataclass(frozen=True)
class Topic:
    """A topic as the cluster knows it; the id tells it from a namesake made after a deletion."""

    name: str
    topic_id: str
    partitions: int
    created: bool


def ensure_topic(
    bootstrap_servers: str,
    name: str,
    partitions: int = DEFAULT_PARTITIONS,
    config: Mapping[str, str] | None = None,
    *,
    replication_factor: int = 1,
    client_settings: Mapping[str, str] | None = None,
) -> Topic:
    """Create the topic unless it exists, and return it once all its partitions have a leader.

    `partitions`, `config` and `replication_factor` hold for a topic that is created here; with
    three replicas or more, two have to be in sync for a record to be acknowledged. A topic that
    exists keeps its own, save what REQUIRED_CONFIG names: that must be so, or TopicMismatch is
    raised.
    """
    admin = _admin(bootstrap_servers, client_settings)
    in_sync = {"min.insync.replicas": "2"} if replication_factor > 2 else {}
    wanted = NewTopic(
        name,
        num_partitions=partitions,
        replication_factor=replication_factor,
        config={**REQUIRED_CONFIG, **in_sync, **(config or {})},
    )
    created = True
    try:
        admin.create_topics([wanted], operation_timeout=REQUEST_LIMIT_S)[name].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
        created = False
    _wait_for_leaders(admin, name)
    _require_config(admin, name)
    described = admin.describe_topics(TopicCollection([name]))[name].result()
    return Topic(name, str(described.topic_id), len(described.partitions), created)


def unready_reason(bootstrap_servers: str) -> str | None:
    """None when a broker answers and knows its controller, else why not; one quick try."""
    first = bootstrap_servers.split(",")[0]
    host, _, port = first.rpartition(":")
    try:
        # A closed port is told at once; librdkafka would try it again until its limit.
        socket.create_connection((host, int(port)), PROBE_LIMIT_S).close()
    except OSError as error:
        return f"{first}: {error.strerror or error}"
    try:
        metadata = _admin(bootstrap_servers).list_topics(timeout=PROBE_LIMIT_S)
    except KafkaException as error:
        return f"{first}: {error.args[0].str()}"
    if not metadata.brokers or metadata.controller_id < 0:
        return f"{first}: no controller yet"
    return None


def wait_until_ready(bootstrap_servers: str, limit_s: float) -> None:
    """Return as soon as a broker answers; KafkaNotReady after `limit_s` seconds."""
    end = time.monotonic() + limit_s
    while (reason := unready_reason(bootstrap_servers)) is not None:
        if time.monotonic() >= end:
            raise KafkaNotReady(f"no Kafka after {limit_s:.0f} s: {reason}")
        time.sleep(POLL_PAUSE_S)


def _admin(bootstrap_servers: str, settings: Mapping[str, str] | None = None) -> AdminClient:
    return AdminClient(
        {
            "reconnect.backoff.ms": "20",
            "reconnect.backoff.max.ms": "200",
            "log_level": "0",
            **(settings or {}),
            "bootstrap.servers": bootstrap_servers,
        }
    )


def _wait_for_leaders(admin: AdminClient, name: str) -> None:
    end = time.monotonic() + REQUEST_LIMIT_S
    while True:
        topic = admin.list_topics(name, timeout=REQUEST_LIMIT_S).topics[name]
        leaderless = [p.id for p in topic.partitions.values() if p.leader < 0]
        if topic.error is None and topic.partitions and not leaderless:
            return
        if time.monotonic() >= end:
            raise KafkaNotReady(f"topic {name} has no leader for partitions {leaderless or 'any'}")
        time.sleep(POLL_PAUSE_S)


def _require_config(admin: AdminClient, name: str) -> None:
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    found = admin.describe_configs([resource])[resource].result()
    for key, value in REQUIRED_CONFIG.items():
        if found[key].value != value:
            raise TopicMismatch(
                f"topic {name} has {key}={found[key].value} and Tidemark relies on {key}={value}:"
                f" alter it (kafka-configs --alter --topic {name} --add-config {key}={value}) or"
                " name another topic"
            )
