"""Records go to Kafka: one idempotent producer a process, one future a request.

    event loop    produce() for each record, then the request waits for its Delivery's future
    poll thread   takes Kafka's answers and wakes the loop once for all requests they complete
    watch thread  asks Kafka for the topic every second, and once for the batches it takes

Invariants: a request is told "acknowledged" only when every one of its records is; what is queued
is bounded in messages and bytes; no request waits longer than the acknowledgement timeout and a
grace. A request that is told 503 may still have some of its records in the topic.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque

from confluent_kafka import KafkaError, KafkaException, Producer

from capture_api.events.record import VERSION_HEADERS
from capture_api.events.records import Record
from capture_api.kafka.client_log import client_log
from capture_api.kafka.delivery import Delivery, DeliveryOfEach, OnRecord
from capture_api.kafka.health import KafkaHealth
from capture_api.kafka.topic_limit import topic_limit
from capture_api.refusal import Refused, too_large, try_later
from capture_api.wire.payload import MAX_EVENTS
from orchestration.settings import Settings

QUEUE_MESSAGES = 4 * MAX_EVENTS
BATCH_BYTES = 1_000_000
"""A batch of records that librdkafka fills; less where the topic takes less."""
POLL_SECONDS = 0.1
SWEEP_SECONDS = 0.25
DEADLINE_GRACE_SECONDS = 0.5
"""How much later than librdkafka's own timeout a request gives up by itself."""
LOOK_SECONDS = 1.0
LOOK_TIMEOUT_SECONDS = 2.0

_MISSING_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)

log = logging.getLogger("tidemark.capture.kafka")


class RecordProducer:
    """Sends the records of requests; between `start` and `close`, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.health = KafkaHealth(settings.topic)
        self._settings = settings
        self._topic = settings.topic
        self._timeout = settings.capture_ack_timeout_ms / 1000
        self._configuration = _configuration(settings)
        self._finished: list[Delivery] = []  # poll thread only
        self._refused_records: deque[tuple[OnRecord, KafkaError]] = deque()
        self._waiting: deque[Delivery] = deque()  # event loop only, in order of deadline
        self._stopping = threading.Event()
        self._fatal = False
        self._batches_too_large = False
        self._threads: list[threading.Thread] = []
        self._producer = self._new_producer()

    def start(self) -> None:
        """Start the threads. Called on the event loop that will send."""
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        for name, target in (("kafka-poll", self._poll), ("kafka-watch", self._watch)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def check(self) -> None:
        """Refuse (503) at once while Kafka is away and no probe is due."""
        if not self.health.may_try():
            raise self._away()

    def send(self, records: list[Record]) -> asyncio.Future[KafkaError | None]:
        """Queue the records; the future tells whether Kafka has them all.

        Refuses (503) when the queue is full, or Kafka is away and no probe is due.
        """
        if not self.health.take_probe():
            raise self._away()
        deadline = time.monotonic() + self._timeout + DEADLINE_GRACE_SECONDS
        future = self._loop.create_future()
        delivery = Delivery(len(records), future, deadline, self._finished.append)
        produce, on_record = self._producer.produce, delivery.on_record
        try:
            for topic, value, key in records:
                produce(topic, value, key, on_delivery=on_record, headers=VERSION_HEADERS)
        except BufferError:
            raise try_later(
                "queue_full",
                "too many events wait for Kafka: send the request again in a moment",
            ) from None
        except KafkaException as exception:
            raise self.refusal(exception.args[0]) from None
        self._waiting.append(delivery)
        return future

    def send_each(self, records: list[Record]) -> asyncio.Future[list[KafkaError | None]]:
        """Like `send`, and the future tells of each record by itself.

        Refuses (503) only while Kafka is away and no probe is due; a record that found the queue
        full has that as its error.
        """
        if not self.health.take_probe():
            raise self._away()
        deadline = time.monotonic() + self._timeout + DEADLINE_GRACE_SECONDS
        future = self._loop.create_future()
        delivery = DeliveryOfEach(len(records), future, deadline, self._finished.append)
        produce = self._producer.produce
        for index, (topic, value, key) in enumerate(records):
            on_record = delivery.on_record_at(index)
            try:
                produce(topic, value, key, on_delivery=on_record, headers=VERSION_HEADERS)
            except BufferError:
                error = KafkaError(KafkaError._QUEUE_FULL)
            except KafkaException as exception:
                error = exception.args[0]
            else:
                continue
            # The poll thread may be counting this very delivery, so it is the one to be told.
            self._refused_records.append((on_record, error))
        self._waiting.append(delivery)
        return future

    def problem(self) -> str | None:
        """Why records cannot be sent now, or None."""
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        if dead:
            return f"the thread {dead[0]} has died: restart the process; its log says why"
        return self.health.problem()

    def refusal(self, error: KafkaError) -> Refused:
        """What to tell the client whose records met this error."""
        code = error.code()
        if code == KafkaError.MSG_SIZE_TOO_LARGE:
            return too_large(
                "maximum event size exceeded: Kafka takes no record that large; send smaller events"
            )
        self.health.delivery_failed(error.str())
        if code in _MISSING_TOPIC:
            self.health.topic_missing()
            return try_later(
                "topic_missing",
                f"the server's topic {self._topic!r} does not exist: its operator must create it; "
                "then send the request again",
                retry_after=5,
            )
        return try_later(
            "not_acknowledged",
            f"transient error, please retry: Kafka did not acknowledge ({error.str()}); "
            "an event that has a uuid is stored once, however often it is sent",
        )

    async def close(self) -> None:
        """Wait for what is queued, at most as long as a request would, and stop the threads."""
        self._sweeper.cancel()
        self._stopping.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _new_producer(self) -> Producer:
        return Producer({**self._configuration, "error_cb": self._on_error}, logger=client_log())

    def _away(self) -> Refused:
        return try_later("kafka_away", f"transient error, please retry: {self.health.problem()}")

    def _settle(self, finished: list[Delivery]) -> None:
        for delivery in finished:
            if delivery.error is None:
                self.health.delivered()
            delivery.settle()

    def _sweep(self) -> None:
        """Give up on deliveries past their deadline, and forget the finished ones before them."""
        now = time.monotonic()
        waiting = self._waiting
        while waiting and (waiting[0].future.done() or waiting[0].deadline < now):
            delivery = waiting.popleft()
            delivery.give_up(KafkaError(KafkaError._TIMED_OUT))
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(POLL_SECONDS)
            self._hand_over()
            if self._fatal:
                self._replace_producer()
            elif self._batches_too_large:
                self._use_smaller_batches()
        self._producer.flush(self._timeout)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._refused_records:
            on_record, error = self._refused_records.popleft()
            on_record(error, None)
        if self._finished:
            finished = self._finished.copy()
            self._finished.clear()  # kept as an object: deliveries hold its `append`
            self._loop.call_soon_threadsafe(self._settle, finished)

    def _replace_producer(self) -> None:
        """An idempotent producer that lost its sequence stays unusable: go on with a new one."""
        broken, self._producer = self._producer, self._new_producer()
        self._fatal = False
        broken.purge()
        broken.poll(0)
        self._hand_over()
        log.warning("the Kafka producer was replaced after a fatal error")

    def _use_smaller_batches(self) -> None:
        """Go on with a producer that has the new batch.size, once the old one has sent its own."""
        self._batches_too_large = False
        previous, self._producer = self._producer, self._new_producer()
        # A `send` that still has the previous one ends before the loop does anything else.
        sent = threading.Event()
        self._loop.call_soon_threadsafe(sent.set)
        sent.wait(self._timeout)
        previous.flush(self._timeout)
        self._hand_over()

    def _on_error(self, error: KafkaError) -> None:
        """librdkafka's errors that concern no record. Called on the poll thread."""
        if error.fatal():
            log.error("fatal error of the Kafka producer: %s", error.str())
            self._fatal = True
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.health.brokers_down(error.str())

    def _watch(self) -> None:
        limit_known = False
        while True:
            try:
                metadata = self._producer.list_topics(self._topic, LOOK_TIMEOUT_SECONDS)
            except KafkaException as exception:
                self.health.look_failed(exception.args[0].str())
            else:
                error = metadata.topics[self._topic].error
                if error is not None and error.code() in _MISSING_TOPIC:
                    self.health.topic_missing()
                else:
                    self.health.looked()
                    if not limit_known:
                        limit_known = True
                        self._fit_batches()
            if self._stopping.wait(LOOK_SECONDS):
                return

    def _fit_batches(self) -> None:
        """Kafka refuses a batch over the topic's limit whole, with every small record in it."""
        limit = topic_limit(self._settings)
        if limit is not None and limit < int(self._configuration["batch.size"]):
            log.info("the topic %r takes batches of up to %d bytes", self._topic, limit)
            self._configuration = {**self._configuration, "batch.size": limit}
            self._batches_too_large = True


def _configuration(settings: Settings) -> dict[str, str | int | float | bool]:
    timeout_ms = settings.capture_ack_timeout_ms
    return {
        "client.id": "tidemark-capture",
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "batch.size": BATCH_BYTES,
        "linger.ms": settings.capture_linger_ms,
        "topic.metadata.propagation.max.ms": min(1_000, timeout_ms),
        "queue.buffering.max.messages": QUEUE_MESSAGES,
        "queue.buffering.max.kbytes": settings.capture_max_inflight_bytes // 1024,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1_000,
        "log.connection.close": False,
        **settings.kafka_client,
        # What follows cannot be set from outside: the meaning of a 200 and of a 503 hangs on it.
        "acks": "all",
        "enable.idempotence": True,
        # Past this the client has its 503, and the records should not arrive any more.
        "delivery.timeout.ms": timeout_ms,
        "request.timeout.ms": timeout_ms,
    }
