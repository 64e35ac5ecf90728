"""Records go to Kafka: one idempotent producer a process, one future a request.

    event loop    produce() for each record, then the request waits for its Delivery's future; many
                  records of one request in turns with it (turns.py)
    poll thread   takes Kafka's answers and wakes the loop once for all requests they complete
    watch thread  asks Kafka for the topics every second, and once for the batches they take
    spool         takes over when Kafka does not acknowledge, where one is set (see spool.py)

Invariants: a request is told "acknowledged" only when every one of its records is; what is queued
is bounded in messages and bytes; no request waits longer than the acknowledgement timeout and a
grace, nor, once the breaker is open, longer than OPEN_WAIT_SECONDS. A request that is told 503 may
still have some of its records in the topic: they stay in librdkafka's queue until the timeout.
Purging them would forget what a client that does not send again had given us.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter, deque
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer

from capture_api.events.record import headers_of
from capture_api.events.records import Record
from capture_api.kafka.client_log import client_log
from capture_api.kafka.configuration import configuration
from capture_api.kafka.delivery import Delivery, DeliveryOfEach, OnRecord
from capture_api.kafka.errors import MISSING_TOPIC, NAMING_TOPIC, naming_topic
from capture_api.kafka.health import KafkaHealth
from capture_api.kafka.spool import Spool
from capture_api.kafka.topic_watch import TopicWatch
from capture_api.refusal import Refused, too_large, try_later
from capture_api.turns import pause
from orchestration.settings import Settings

POLL_SECONDS = 0.1
POLL_PAUSE_SECONDS = 0.001
"""Between two polls: answers that come meanwhile are handed over together, and every handing-over
takes the interpreter from the event loop. Costs a request half of it, and saves 3 to 8 % of CPU."""
PRODUCED_AT_ONCE = 32
"""Records of a long request that are produced without a pause."""
SWEEP_SECONDS = 0.25
DEADLINE_GRACE_SECONDS = 0.5
"""How much later than librdkafka's own timeout a request gives up by itself."""
OPEN_WAIT_SECONDS = 0.5
"""How long a request waits while the breaker is open."""
HUNG_SECONDS = 30.0
"""The poll thread comes round ten times a second; silent for so long, it does not come back."""
SETTLED_SECONDS = 1.0
"""After a change of batch.size, how long refusals may still be about batches made before it."""
LOST_ANSWER_SECONDS = 5.0
"""How much later than librdkafka's own timeout an answer to the spool counts as lost."""
FLUSH_SECONDS = 5.0
"""At the end, how long what nobody waits for any more may still take."""

log = logging.getLogger("tidemark.capture.kafka")


class RecordProducer:
    """Sends the records of requests; between `start` and `close`, on one event loop.

    The counters are plain numbers since the start, written on the event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.health = KafkaHealth(settings.topic)
        self._timeout = settings.capture_ack_timeout_ms / 1000
        self._configuration = configuration(settings)
        self._finished: list[Delivery] = []  # poll thread only
        self._refused_records: deque[tuple[OnRecord, KafkaError]] = deque()
        self._waiting: deque[Delivery] = deque()  # event loop only, in order of their start
        self._stopping = threading.Event()
        self._fatal = False
        self._batches_too_large = False
        self._batches_fit_at = 0.0  # monotonic seconds
        self.spool: Spool | None = None
        if settings.capture_spool_dir:
            self.spool = Spool(
                settings.capture_spool_dir,
                settings.capture_spool_max_bytes,
                self.health,
                self._send_from_spool,
                self._resume,
                self.refusal,
            )
        self._threads: list[threading.Thread] = []
        self._polled_at = time.monotonic()
        self._watch = TopicWatch(settings, self.health, lambda: self._producer, self._use_limit)

        self.records_produced = 0
        """Records handed to librdkafka."""
        self.records_acknowledged = 0
        """Records that Kafka has."""
        self.records_failed: Counter[str] = Counter()
        """Records that Kafka does not have, by the name of their request's first error."""
        self.requests_given_up = 0
        """Requests told 503 before Kafka had answered."""
        self._producer = self._new_producer()

    @property
    def queue_depth(self) -> int:
        """Records that wait for Kafka's answer."""
        return len(self._producer)

    def start(self) -> None:
        """Start the threads. Called on the event loop that will send."""
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        if self.spool is not None:
            self.spool.start()
        for name, target in (("kafka-poll", self._poll), ("kafka-watch", self._watch.run)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def check(self) -> None:
        """Refuse (503) at once while nothing can take records."""
        if self.spool is None:
            if not self.health.may_try():
                raise self._away()
        elif (self.spool.active or self.health.is_open) and (reason := self.spool.no_room()):
            raise _spool_full(reason)

    def send(self, records: list[Record]) -> asyncio.Future[KafkaError | None]:
        """Queue the records; the future tells whether Kafka, or the spool, has them all.

        Refuses (503) when the queue is full, a topic is missing, or Kafka is away and no probe is
        due; with a spool instead when that has no room.
        """
        health = self.health
        if health.missing:
            for topic, _, _ in records:
                if topic in health.missing:
                    raise _topic_missing(topic)
        future = self._loop.create_future()
        delivery = Delivery(len(records), future, time.monotonic(), self._finished.append)
        if self.spool is not None:
            delivery.records = records
            if self._goes_to_spool(self.spool):
                self._send_to_spool(self.spool, delivery)
                return future
        elif not health.take_probe():
            raise self._away()
        error = self._produce(delivery, records)
        if error is not None:
            if self.spool is None or error.code() in NAMING_TOPIC:
                raise self.refusal(error)
            self._waiting.append(delivery)
            self._divert(self.spool, error.str())
            return future
        self._await(delivery, len(records))
        return future

    def send_each(self, records: list[Record]) -> asyncio.Future[list[KafkaError | None]]:
        """Like `send`, and the future tells of each record by itself.

        Refuses (503) only while nothing can take records; a record that found the queue full or
        its topic missing has that as its error.
        """
        future = self._loop.create_future()
        delivery = DeliveryOfEach(len(records), future, time.monotonic(), self._finished.append)
        if self.spool is not None:
            delivery.records = records
            if self._goes_to_spool(self.spool):
                missing = self.health.missing
                for index, (topic, _, _) in enumerate(records if missing else []):
                    if topic in missing:
                        delivery.errors[index] = KafkaError(KafkaError._UNKNOWN_TOPIC, topic)
                self._send_to_spool(self.spool, delivery)
                return future
        elif not self.health.take_probe():
            raise self._away()
        self._produce_each(delivery, records)
        self._await(delivery, len(records))
        return future

    def _await(self, delivery: Delivery, records: int) -> None:
        """Count what is queued among what Kafka's answers are waited for."""
        self.records_produced += records
        if records > PRODUCED_AT_ONCE:
            delivery.started = time.monotonic()  # others may have begun during a pause
        self._waiting.append(delivery)

    def _produce(self, delivery: Delivery, records: list[Record]) -> KafkaError | None:
        """Queue the records; the error that ended it, perhaps halfway."""
        on_record = delivery.on_record
        topic = ""
        try:
            for start in range(0, len(records), PRODUCED_AT_ONCE):
                if start:
                    pause()
                produce = self._producer.produce  # perhaps another one, after a pause
                for topic, value, key in records[start : start + PRODUCED_AT_ONCE]:
                    produce(topic, value, key, on_delivery=on_record, headers=headers_of(value))
        except BufferError:
            return KafkaError(KafkaError._QUEUE_FULL)
        except KafkaException as exception:
            return naming_topic(exception.args[0], topic)
        return None

    def _produce_each(self, delivery: DeliveryOfEach, records: list[Record]) -> None:
        """Queue the records; those that cannot be have that as their error."""
        produce, missing = self._producer.produce, self.health.missing
        full: KafkaError | None = None
        for index, (topic, value, key) in enumerate(records):
            if index % PRODUCED_AT_ONCE == PRODUCED_AT_ONCE - 1:
                pause()
                produce = self._producer.produce  # perhaps another one
            on_record = delivery.on_record_at(index)
            # Once one found no room, none behind it goes before it.
            error = KafkaError(KafkaError._UNKNOWN_TOPIC, topic) if topic in missing else full
            if error is None:
                try:
                    produce(topic, value, key, on_delivery=on_record, headers=headers_of(value))
                except BufferError:
                    error = full = KafkaError(KafkaError._QUEUE_FULL)
                except KafkaException as exception:
                    error = naming_topic(exception.args[0], topic)
            if error is not None:
                # The poll thread may be counting this very delivery, so it is the one to be told.
                self._refused_records.append((on_record, error))

    def _goes_to_spool(self, spool: Spool) -> bool:
        """Whether a new request goes to the spool, behind those that wait."""
        if not spool.active and self.health.is_open:
            self._divert(spool, self.health.problem() or "Kafka does not answer")
            return True
        return spool.active

    def _send_to_spool(self, spool: Spool, delivery: Delivery) -> None:
        reason = spool.no_room()
        if reason:
            raise _spool_full(reason)
        spool.take(delivery, self.health.problem() or "Kafka does not answer")

    def _divert(self, spool: Spool, reason: str) -> None:
        """From now on through the spool, beginning with all that wait, in their order.

        Their records stay in librdkafka's queue as well. Should they arrive after all, they do so
        no later than their copies from the spool, and before anything behind those: the order of
        first arrivals is kept, and a uuid is stored once.
        """
        while self._waiting:
            delivery = self._waiting.popleft()
            if not delivery.future.done():
                spool.take(delivery, reason)

    def _send_from_spool(self, records: list[Record]) -> asyncio.Future[list[KafkaError | None]]:
        """Produce whatever the breaker says, and wait as long as librdkafka does."""
        future = self._loop.create_future()
        delivery = DeliveryOfEach(len(records), future, time.monotonic(), self._finished.append)
        self._produce_each(delivery, records)
        # Should an answer be lost with a replaced producer, the drain goes on all the same.
        lost = self._loop.call_later(
            self._timeout + LOST_ANSWER_SECONDS,
            delivery.give_up,
            KafkaError(KafkaError._TIMED_OUT),
        )
        future.add_done_callback(lambda _: lost.cancel())
        self.records_produced += len(records)
        return future

    def _resume(self, queued: deque[Delivery]) -> None:
        """Produce what is queued for an empty spool; what finds no room stays queued."""
        while queued:
            outer = queued[0]
            if not outer.future.done():
                future = self._loop.create_future()
                count = len(outer.to_spool)
                inner = Delivery(count, future, outer.started, self._finished.append)
                inner.records = outer.to_spool
                if self._produce(inner, outer.to_spool) is not None:
                    return
                future.add_done_callback(partial(_pass_on, outer))
                self.records_produced += count
                self._waiting.append(inner)
            queued.popleft()

    def problem(self) -> str | None:
        """Why records cannot be sent now, or None."""
        problem = self.defect() or self.health.problem()
        if self.spool is None or self.defect():
            return problem
        if self.health.main_topic_missing:
            return problem
        if problem or self.spool.active:
            reason = self.spool.no_room()
            return f"{problem or 'the spool is being drained'}; {reason}" if reason else None
        return None

    def degraded(self) -> str | None:
        """What an operator should know while records can be taken all the same, or None."""
        spool = self.spool
        if spool is None or not spool.active:
            return None
        why = self.health.problem() or spool.trouble or "they are on their way to Kafka"
        return (
            f"events go through the spool ({why}): {spool.records} records, {spool.bytes} bytes, "
            f"the oldest of {spool.oldest_seconds:.0f} s ago"
        )

    def defect(self) -> str | None:
        """What is wrong with this process so that only a new one helps, or None."""
        for thread in self._threads:
            if not thread.is_alive() and not self._stopping.is_set():
                return f"the thread {thread.name} has died: restart the process; its log says why"
        if self.spool is not None and self._threads and (dead := self.spool.dead()):
            return f"the task {dead} has ended: restart the process; its log says why"
        silent = time.monotonic() - self._polled_at
        if self._threads and silent > HUNG_SECONDS + 2 * self._timeout:
            return f"the thread kafka-poll hangs since {silent:.0f} s: restart the process"
        return None

    def refusal(self, error: KafkaError) -> Refused:
        """What to tell the client whose records met this error."""
        code = error.code()
        if code in NAMING_TOPIC:
            topic = error.str()
            self._watch.also(topic)
            if code in MISSING_TOPIC:
                self.health.topic_missing(topic)
                return _topic_missing(topic)
            fitting = time.monotonic() - self._batches_fit_at > SETTLED_SECONDS
            if fitting and self._watch.knows_limit(topic):
                return too_large(
                    "maximum event size exceeded: Kafka takes no record that large; send smaller "
                    "events"
                )
            # It may have been the batch that was too large, made before the limit was known.
            return try_later(
                "not_acknowledged",
                "transient error, please retry: Kafka took none of a batch that was too large",
            )
        if code == KafkaError._QUEUE_FULL:
            return try_later(
                "queue_full",
                "too many events wait for Kafka: send the request again in a moment",
            )
        self.health.delivery_failed(error.str())
        return try_later(
            "not_acknowledged",
            f"transient error, please retry: Kafka did not acknowledge ({error.str()}); "
            "an event that has a uuid is stored once, however often it is sent",
        )

    async def close(self) -> None:
        """Wait for what is queued, at most FLUSH_SECONDS, and stop the threads."""
        self._sweeper.cancel()
        if self.spool is not None:
            await self.spool.close()
        self._stopping.set()
        self._watch.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _new_producer(self) -> Producer:
        return Producer({**self._configuration, "error_cb": self._on_error}, logger=client_log())

    def _away(self) -> Refused:
        return try_later("kafka_away", f"transient error, please retry: {self.health.problem()}")

    def _settle(self, finished: list[Delivery]) -> None:
        spool, diverts = self.spool, None
        for delivery in finished:
            self.records_acknowledged += delivery.expected - delivery.failed
            if delivery.error is None:
                self.health.delivered()
                delivery.settle()
                continue
            self.records_failed[delivery.error.name()] += delivery.failed
            if spool is not None and delivery.can_spool() and not delivery.future.done():
                diverts = delivery.error.str()
                self.health.delivery_failed(diverts)
            else:
                delivery.settle()
        if spool is not None and diverts is not None:
            self._divert(spool, f"Kafka did not acknowledge: {diverts}")

    def _sweep(self) -> None:
        """Give up on deliveries that waited too long, and forget the finished ones before them."""
        limit = self._timeout + DEADLINE_GRACE_SECONDS
        now = time.monotonic()
        spool = self.spool
        if spool is not None:
            spool.give_up_before(now - limit)
        if self.health.is_open:
            limit = min(limit, OPEN_WAIT_SECONDS)
        waiting = self._waiting
        while waiting and (waiting[0].future.done() or waiting[0].started < now - limit):
            if waiting[0].future.done():
                waiting.popleft()
            elif spool is not None:
                self._divert(spool, self.health.problem() or "Kafka did not acknowledge in time")
            else:
                self.requests_given_up += 1
                waiting.popleft().give_up(KafkaError(KafkaError._TIMED_OUT))
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(POLL_SECONDS)
            self._polled_at = time.monotonic()
            self._hand_over()
            time.sleep(POLL_PAUSE_SECONDS)
            if self._fatal:
                self._replace_producer()
            elif self._batches_too_large:
                self._use_smaller_batches()
        patience = OPEN_WAIT_SECONDS if self.health.is_open else FLUSH_SECONDS
        self._producer.flush(min(self._timeout, patience))
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
        # A `send` that still has the previous one ends, or pauses, before the loop goes on.
        sent = threading.Event()
        self._loop.call_soon_threadsafe(sent.set)
        sent.wait(self._timeout)
        previous.flush(self._timeout)
        previous.purge()  # what has no answer by now gets this one
        previous.poll(0)
        self._hand_over()
        self._batches_fit_at = time.monotonic()

    def _use_limit(self, limit: int) -> None:
        """Keep batches within these bytes. Called on the watch thread."""
        if limit < int(self._configuration["batch.size"]):
            log.info("a topic takes batches of up to %d bytes only", limit)
            self._configuration = {**self._configuration, "batch.size": limit}
            self._batches_fit_at = math.inf
            self._batches_too_large = True

    def _on_error(self, error: KafkaError) -> None:
        """librdkafka's errors that concern no record. Called on the poll thread."""
        if error.fatal():
            log.error("fatal error of the Kafka producer: %s", error.str())
            self._fatal = True
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.health.brokers_down(error.str())
            self._watch.look_now()


def _pass_on(outer: Delivery, inner: asyncio.Future[KafkaError | None]) -> None:
    if inner.cancelled():
        return
    error = inner.result()
    outer.stored() if error is None else outer.not_stored(error)


def _spool_full(reason: str) -> Refused:
    return try_later("spool_full", f"transient error, please retry: {reason}", retry_after=5)


def _topic_missing(topic: str) -> Refused:
    return try_later(
        "topic_missing",
        f"the server's topic {topic!r} does not exist: its operator must create it; then send the "
        "request again",
        retry_after=5,
    )
