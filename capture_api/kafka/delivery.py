"""The delivery: one request's records on their way to Kafka, and the future that waits for them.

Kafka's answers arrive on the poll thread, one a record; the event loop is woken once for all
requests that a poll completed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import KafkaError

from capture_api.kafka.errors import naming_topic

OnRecord = Callable[[KafkaError | None, Any], None]


class Delivery:
    """Counts a request's answers from Kafka. They belong to the poll thread until it finishes.

    The future's result is None when Kafka has every record, else the first error.
    """

    __slots__ = ("_finish", "answered", "error", "expected", "failed", "future", "started")

    def __init__(
        self,
        expected: int,
        future: asyncio.Future[Any],
        started: float,
        finish: Callable[[Delivery], None],
    ) -> None:
        self.expected = expected
        self._finish = finish
        self.future = future
        self.started = started  # monotonic seconds
        self.answered = 0
        self.failed = 0
        self.error: KafkaError | None = None

    def on_record(self, error: KafkaError | None, message: Any) -> None:
        """Kafka's answer to one record. Called on the poll thread, so it only counts."""
        self.answered += 1
        if error is not None:
            self.failed += 1
            if self.error is None:
                self.error = naming_topic(error, message and message.topic())
        if self.answered == self.expected:
            self._finish(self)

    def settle(self) -> None:
        """Tell the waiting request. Called on the event loop."""
        if not self.future.done():
            self.future.set_result(self.error)

    def give_up(self, error: KafkaError) -> None:
        """Tell the waiting request before Kafka has answered everything. On the event loop."""
        if not self.future.done():
            self.future.set_result(error)


class DeliveryOfEach(Delivery):
    """A delivery whose future tells of each record: a list of errors, None where there is none."""

    __slots__ = ("errors",)

    def __init__(
        self,
        expected: int,
        future: asyncio.Future[Any],
        started: float,
        finish: Callable[[Delivery], None],
    ) -> None:
        super().__init__(expected, future, started, finish)
        unanswered = KafkaError(KafkaError._TIMED_OUT)
        self.errors: list[KafkaError | None] = [unanswered] * expected

    def on_record_at(self, index: int) -> OnRecord:
        """What Kafka's answer to the record at this place goes to."""
        return partial(self._on_record_at, index)

    def _on_record_at(self, index: int, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            error = naming_topic(error, message and message.topic())
        self.errors[index] = error
        self.on_record(error, message)

    def settle(self) -> None:
        """Tell the waiting request. Called on the event loop."""
        if not self.future.done():
            self.future.set_result(list(self.errors))

    def give_up(self, error: KafkaError) -> None:
        """Tell the waiting request which records are acknowledged so far. On the event loop."""
        self.settle()
