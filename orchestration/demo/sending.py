"""Sending: the real PostHog SDK, its own batching and gzip, pointed here by its host alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posthog import Posthog

from orchestration.demo.visitors import DemoEvent

_FLUSH_LIMIT_S = 60.0


@dataclass(frozen=True)
class Sent:
    """What the SDK took, and what it reported as not delivered."""

    taken: int
    undelivered: int
    errors: tuple[str, ...]

    @property
    def acknowledged(self) -> int:
        """Events whose request was answered 200: each of them is in Kafka."""
        return self.taken - self.undelivered


def send(
    host: str, token: str, events: Sequence[DemoEvent], progress: Callable[[int], None]
) -> Sent:
    """Capture the events and wait until the SDK has delivered or given up on each."""
    undelivered = 0
    errors: list[str] = []

    def note_failure(error: Exception, items: Sequence[object]) -> None:
        nonlocal undelivered
        undelivered += len(items)
        errors.append(str(error))

    client = Posthog(
        token, host=host, gzip=True, on_error=note_failure, max_queue_size=len(events) + 1
    )
    try:
        for number, event in enumerate(events, 1):
            client.capture(
                event.event,
                distinct_id=event.distinct_id,
                uuid=event.uuid,
                timestamp=event.timestamp,
                properties=event.properties,
            )
            if number % 500 == 0:
                progress(number)
        client.flush(timeout_seconds=_FLUSH_LIMIT_S)
    finally:
        client.shutdown()
    return Sent(len(events), undelivered, tuple(errors))
