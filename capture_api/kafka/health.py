"""What the edge knows about Kafka's health, and the breaker that follows from it.

Signals come from three threads: deliveries (event loop), librdkafka's errors (poll thread) and
the looks at the topic (watch thread). Each writes its own fields, whole values at a time.

The breaker is open while the last contact failed and no broker is reachable: then waiting is
pointless, and only one request every PROBE_SECONDS goes through to try.
"""

from __future__ import annotations

import logging
import time

PROBE_SECONDS = 0.5
RECENT_SECONDS = 5.0
"""Kafka is ready if it answered within this time."""

log = logging.getLogger("tidemark.capture.kafka")


class KafkaHealth:
    """Kafka as seen by one process."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._answered_at: float | None = None  # monotonic seconds
        self._delivery_failed = True  # until a first success there is nothing to hope for
        self._brokers_down = False
        self._look_failed = ""
        self._topic_missing = False
        self._away_since: float | None = None
        self._next_probe = 0.0

    def delivered(self) -> None:
        """Kafka acknowledged records."""
        self._delivery_failed = False
        self._topic_missing = False
        self._reachable()

    def delivery_failed(self, reason: str) -> None:
        """Kafka did not acknowledge records."""
        if not self._delivery_failed:
            log.warning("records were not acknowledged: %s", reason)
        self._delivery_failed = True

    def brokers_down(self, reason: str) -> None:
        """librdkafka lost its last connection."""
        self._brokers_down = True
        self._away(reason)

    def looked(self) -> None:
        """A broker described the topic."""
        if self._topic_missing:
            log.info("the topic %r exists now", self._topic)
        self._topic_missing = False
        self._reachable()

    def look_failed(self, reason: str) -> None:
        """No broker described the topic in time."""
        self._look_failed = reason
        self._away(reason)

    def topic_missing(self) -> None:
        """Kafka answers but does not have the topic."""
        if not self._topic_missing:
            log.error(
                "Kafka has no topic %r: create it (`tidemark up` does so on the local stack) or "
                "name another in TIDEMARK_TOPIC; until then requests are answered 503",
                self._topic,
            )
        self._topic_missing = True

    @property
    def answered_lately(self) -> bool:
        """Whether a broker answered within RECENT_SECONDS."""
        at = self._answered_at
        return at is not None and time.monotonic() - at < RECENT_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: Kafka is away, and records are not worth a try."""
        return self._delivery_failed and (self._brokers_down or bool(self._look_failed))

    def may_try(self) -> bool:
        """Whether a request may go on to Kafka: always, or as the one probe that is due."""
        return not self.is_open or time.monotonic() >= self._next_probe

    def take_probe(self) -> bool:
        """Like `may_try`, and uses the probe up."""
        if not self.is_open:
            return True
        now = time.monotonic()
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_SECONDS
        return True

    def problem(self) -> str | None:
        """Why Kafka is not ready, or None."""
        if self._topic_missing:
            return f"Kafka has no topic {self._topic!r}"
        if self._brokers_down or self._look_failed:
            return f"Kafka does not answer: {self._look_failed or 'no broker is up'}"
        if not self.answered_lately:
            return f"Kafka has not answered for {RECENT_SECONDS:g} s"
        return None

    def _reachable(self) -> None:
        self._answered_at = time.monotonic()
        self._brokers_down = False
        self._look_failed = ""
        if self._away_since is not None:
            log.info("Kafka answers again after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None

    def _away(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("Kafka does not answer: %s", reason)
