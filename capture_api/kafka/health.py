"""What the edge knows about Kafka's health, and the breaker that follows from it.

Signals come from three threads: deliveries (event loop), librdkafka's errors (poll thread) and
the looks at the topics (watch thread). Each writes its own fields, whole values at a time.

The breaker is open once no broker has answered for AWAY_SECONDS after a first sign, or at once if
a delivery has failed too: then waiting is pointless and those who wait are given up. A look that is
answered closes it; should looks be what fails, one request every PROBE_SECONDS goes through to try.
"""

from __future__ import annotations

import logging
import time

AWAY_SECONDS = 0.5
"""A lost connection that is back within this time was no outage."""
PROBE_SECONDS = 5.0
RECENT_SECONDS = 5.0
"""Kafka is ready if it answered within this time."""
MOST_MISSING = 100
"""Topics that are remembered as missing; what redirect rules name is not checked when written."""

log = logging.getLogger("tidemark.capture.kafka")


class KafkaHealth:
    """Kafka as seen by one process. `topic` is the one without which nothing works."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._answered_at: float | None = None  # monotonic seconds
        self._delivery_failed = True  # until a first success there is nothing to hope for
        self._look_failed = ""
        self._away_since: float | None = None
        self._next_probe = 0.0
        self.missing: frozenset[str] = frozenset()
        """The topics that Kafka is known not to have."""

    def delivered(self) -> None:
        """Kafka acknowledged records."""
        self._delivery_failed = False
        self._reachable()

    def delivery_failed(self, reason: str) -> None:
        """Kafka did not acknowledge records."""
        if not self._delivery_failed:
            log.warning("records were not acknowledged: %s", reason)
        self._delivery_failed = True

    def brokers_down(self, reason: str) -> None:
        """librdkafka lost its last connection."""
        self._away(reason)

    def looked(self) -> None:
        """A broker answered a look."""
        self._reachable()

    def look_failed(self, reason: str) -> None:
        """No broker answered a look in time."""
        self._look_failed = reason
        self._away(reason)

    def topic_found(self, topic: str) -> None:
        """Kafka has the topic."""
        if topic in self.missing:
            self.missing -= {topic}
            log.info("the topic %r exists now", topic)

    def topic_missing(self, topic: str) -> None:
        """Kafka answers but does not have the topic."""
        if topic in self.missing or len(self.missing) >= MOST_MISSING:
            return
        self.missing |= {topic}
        what = "requests" if topic == self._topic else "requests with events for it"
        log.log(
            logging.ERROR if topic == self._topic else logging.WARNING,
            "Kafka has no topic %r: create it (`tidemark up` does so on the local stack) or "
            "name another in TIDEMARK_TOPIC or the rule that leads there; until then %s are "
            "answered 503",
            topic,
            what,
        )

    @property
    def main_topic_missing(self) -> bool:
        """Whether Kafka lacks the topic without which nothing works."""
        return self._topic in self.missing

    @property
    def answered_lately(self) -> bool:
        """Whether a broker answered within RECENT_SECONDS."""
        at = self._answered_at
        return at is not None and time.monotonic() - at < RECENT_SECONDS

    @property
    def is_away(self) -> bool:
        """Whether the last sign was that no broker answers."""
        return self._away_since is not None

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: Kafka is away, and records are not worth a try."""
        since = self._away_since
        return since is not None and (
            self._delivery_failed or time.monotonic() - since >= AWAY_SECONDS
        )

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
        if self.main_topic_missing:
            return f"Kafka has no topic {self._topic!r}"
        if self.is_away:
            return f"Kafka does not answer: {self._look_failed or 'no broker is up'}"
        if not self.answered_lately:
            return f"Kafka has not answered for {RECENT_SECONDS:g} s"
        return None

    def _reachable(self) -> None:
        self._answered_at = time.monotonic()
        self._look_failed = ""
        since, self._away_since = self._away_since, None
        if since is not None:
            log.info("Kafka answers again after %.1f s", time.monotonic() - since)

    def _away(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("Kafka does not answer: %s", reason)
