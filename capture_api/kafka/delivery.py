"""The delivery: one request's records on their way to Kafka, and the future that waits for them.

Kafka's answers arrive on the poll thread, one a record; the event loop is woken once for all
requests that a poll completed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError


class Delivery:
    """Counts a request's acknowledgements. `answered` and `error` belong to the poll thread."""

    __slots__ = ("_expected", "_finish", "answered", "deadline", "error", "future")

    def __init__(
        self,
        expected: int,
        future: asyncio.Future[KafkaError | None],
        deadline: float,
        finish: Callable[[Delivery], None],
    ) -> None:
        self._expected = expected
        self._finish = finish
        self.future = future
        self.deadline = deadline
        self.answered = 0
        self.error: KafkaError | None = None

    def on_record(self, error: KafkaError | None, _message: Any) -> None:
        """Kafka's answer to one record. Called on the poll thread, so it only counts."""
        self.answered += 1
        if error is not None and self.error is None:
            self.error = error
        if self.answered == self._expected:
            self._finish(self)

    def settle(self) -> None:
        """Tell the waiting request. Called on the event loop."""
        if not self.future.done():
            self.future.set_result(self.error)
