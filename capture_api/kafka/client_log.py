"""librdkafka's own log lines on their way to ours."""

from __future__ import annotations

import logging

_SAID_ELSEWHERE = frozenset({"FAIL"})
"""Lines about connections that failed: many a second in an outage, which KafkaHealth tells once."""


def client_log() -> logging.Logger:
    """The logger for a Kafka client; without one, its lines go to stderr unformatted."""
    log = logging.getLogger("tidemark.capture.kafka.client")
    log.addFilter(_is_news)  # the same function is added once only
    return log


def _is_news(line: logging.LogRecord) -> bool:
    """librdkafka's lines begin with their kind: `FAIL [client] text`."""
    return line.getMessage().partition(" ")[0] not in _SAID_ELSEWHERE
