"""The watch thread: asks Kafka for the topics, and once for the batches that each takes.

    every LOOK_SECONDS (AWAY_LOOK_SECONDS while Kafka is away) → KafkaHealth
    a topic seen for the first time → its max.message.bytes → the smallest decides batch.size

It knows the topics of the settings and those that deliveries found missing or too small: redirect
rules may lead to any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from confluent_kafka import KafkaException, Producer

from capture_api.kafka.errors import MISSING_TOPIC
from capture_api.kafka.health import MOST_MISSING, KafkaHealth
from capture_api.kafka.topic_limit import topic_limits
from orchestration.settings import Settings

LOOK_SECONDS = 1.0
AWAY_LOOK_SECONDS = 0.1
LOOK_TIMEOUT_SECONDS = 2.0

log = logging.getLogger("tidemark.capture.kafka")


class TopicWatch:
    """Looks at the topics until stopped. `use_limit` is told of a smaller limit, in bytes."""

    def __init__(
        self,
        settings: Settings,
        health: KafkaHealth,
        client: Callable[[], Producer],
        use_limit: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._health = health
        self._client = client
        self._use_limit = use_limit
        self._others: frozenset[str] = frozenset()
        self._limits: dict[str, int | None] = {}
        self._wake = threading.Event()
        self._stopped = False

    def look_now(self) -> None:
        """Do not wait for the next look. Called on any thread."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` after the look it is at."""
        self._stopped = True
        self._wake.set()

    def also(self, topic: str) -> None:
        """Look at this topic too. Called on any thread."""
        if topic not in self._settings.topics and len(self._others) < MOST_MISSING:
            self._others |= {topic}

    def knows_limit(self, topic: str) -> bool:
        """Whether the topic was asked what it takes."""
        return topic in self._limits

    def run(self) -> None:
        """Look until `stop` is called. The body of the thread."""
        while not self._stopped:
            self._wake.clear()
            try:
                found = self._look()
            except KafkaException as exception:
                self._health.look_failed(exception.args[0].str())
            else:
                new = [topic for topic in found if topic not in self._limits]
                if new:
                    self._learn_limits(new)
            self._wake.wait(AWAY_LOOK_SECONDS if self._health.is_away else LOOK_SECONDS)

    def _look(self) -> list[str]:
        """The topics that Kafka has. Raises KafkaException when no broker answers."""
        found = []
        for topic in (*self._settings.topics, *sorted(self._others)):
            metadata = self._client().list_topics(topic, LOOK_TIMEOUT_SECONDS)
            self._health.looked()
            error = metadata.topics[topic].error
            if error is not None and error.code() in MISSING_TOPIC:
                self._health.topic_missing(topic)
            else:
                self._health.topic_found(topic)
                found.append(topic)
        return found

    def _learn_limits(self, topics: list[str]) -> None:
        """Kafka refuses a batch over the topic's limit whole, with every small record in it."""
        limits = topic_limits(self._settings, topics)
        if limits:
            self._use_limit(min(limits.values()))
        for topic in topics:
            self._limits[topic] = limits.get(topic)
