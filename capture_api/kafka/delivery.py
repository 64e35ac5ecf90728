"""The delivery: one request's records on their way to Kafka, and the future that waits for them.

Kafka's answers arrive on the poll thread, one a record; the event loop is woken once for all
requests that a poll completed.

With a spool a delivery keeps its records until it is settled. Once it is handed over to the spool,
the request is told what becomes of it there; or that Kafka has everything after all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import KafkaError

from capture_api.events.records import Record
from capture_api.kafka.errors import SPOOL_IS_NO_HELP, naming_topic

OnRecord = Callable[[KafkaError | None, Any], None]


class Delivery:
    """Counts a request's answers from Kafka. They belong to the poll thread until it finishes.

    The future's result is None when Kafka has every record, else the first error.
    """

    __slots__ = (
        "_finish",
        "answered",
        "error",
        "expected",
        "failed",
        "future",
        "handed_over",
        "records",
        "size",
        "started",
        "to_spool",
    )

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
        self.records: list[Record] | None = None  # kept where there is a spool
        self.handed_over = False
        self.to_spool: list[Record] = []
        self.size = 0

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
        self.records = None
        if not self.future.done() and not (self.handed_over and self.error is not None):
            self._tell()

    def _tell(self) -> None:
        self.future.set_result(self.error)

    def can_spool(self) -> bool:
        """Whether the spool would help, now that Kafka's answers are there."""
        return self.records is not None and _may_be_spooled(self.error)

    def hand_over(self) -> int:
        """Leave it to the spool: fills `to_spool`, and returns its size in bytes."""
        self.to_spool, self.records = self._to_spool(), None
        self.size = sum([len(topic) + len(v) + len(k or b"") for topic, v, k in self.to_spool])
        self.handed_over = True
        return self.size

    def _to_spool(self) -> list[Record]:
        return self.records or []

    def stored(self) -> None:
        """The records are in the spool, or in Kafka. Called on the event loop."""
        if not self.future.done():
            self.future.set_result(None)

    def not_stored(self, error: KafkaError) -> None:
        """The spool could not take the records. Called on the event loop."""
        self.give_up(error)

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

    def _tell(self) -> None:
        self.future.set_result(list(self.errors))

    def can_spool(self) -> bool:
        """Whether the spool would help one of the records."""
        return self.records is not None and any(map(_may_be_spooled, self.errors))

    def _to_spool(self) -> list[Record]:
        pairs = zip(self.records or [], self.errors, strict=True)
        return [record for record, error in pairs if _may_be_spooled(error)]

    def stored(self) -> None:
        """What Kafka does not have is in the spool, except what no other try would help."""
        if not self.future.done():
            errors = [None if _may_be_spooled(error) else error for error in self.errors]
            self.future.set_result(errors)

    def give_up(self, error: KafkaError) -> None:
        """Tell the waiting request which records are acknowledged so far. On the event loop."""
        if not self.future.done():
            self._tell()


def _may_be_spooled(error: KafkaError | None) -> bool:
    return error is not None and error.code() not in SPOOL_IS_NO_HELP
