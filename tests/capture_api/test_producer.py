"""The producer by itself: a full queue, a replaced producer, the breaker, and the deadline."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from confluent_kafka import KafkaError

from capture_api.events.record import VERSION_HEADERS
from capture_api.events.records import Record
from capture_api.kafka.health import AWAY_SECONDS, PROBE_SECONDS, RECENT_SECONDS, KafkaHealth
from capture_api.kafka.producer import RecordProducer
from capture_api.refusal import Refused
from local_stack.kafka.topics import ensure_topic
from orchestration.settings import Settings

_numbers = itertools.count(1)


@pytest.fixture
def topic(kafka: str) -> str:
    """A fresh topic."""
    name = f"producer-{next(_numbers)}"
    ensure_topic(kafka, name, 1)
    return name


def record_for(settings: Settings) -> Record:
    """A small record for the topic of the settings."""
    return settings.topic, b"{}", b"t:d"


def run(settings: Settings, use: Callable[[RecordProducer], Coroutine[Any, Any, None]]) -> None:
    """Use a started producer, and close it."""

    async def main() -> None:
        producer = RecordProducer(settings)
        producer.start()
        try:
            await use(producer)
        finally:
            await producer.close()

    asyncio.run(main())


def test_full_queue_is_refused_and_recovers(kafka: str, topic: str, settings: Any) -> None:
    """More records than the queue holds are a 503; a smaller request goes through afterwards."""
    options = {"queue.buffering.max.messages": "10"}
    configured = settings(kafka_bootstrap_servers=kafka, topic=topic, kafka_options=options)

    async def use(producer: RecordProducer) -> None:
        with pytest.raises(Refused) as caught:
            producer.send([record_for(configured)] * 100)
        assert (caught.value.status, caught.value.code) == (503, "queue_full")
        assert caught.value.retry_after is not None
        while True:
            try:
                delivered = await producer.send([record_for(configured)])
            except Refused as refused:
                assert refused.code == "queue_full"  # noqa: PT017
                await asyncio.sleep(0)
            else:
                assert delivered is None
                return

    run(configured, use)


def test_each_record_has_its_own_outcome(kafka: str, topic: str, settings: Any) -> None:
    """Beside good records, one for a topic that is not there (named) and those beyond the queue
    fail."""
    options = {"queue.buffering.max.messages": "10"}
    configured = settings(kafka_bootstrap_servers=kafka, topic=topic, kafka_options=options)

    async def use(producer: RecordProducer) -> None:
        good = record_for(configured)
        errors = await producer.send_each([good, (f"{topic}-not-there", b"{}", None), good])
        assert [error is None for error in errors] == [True, False, True]
        assert f"'{topic}-not-there' does not exist" in producer.refusal(errors[1]).detail
        errors = await producer.send_each([good] * 40)
        codes = {error.code() for error in errors if error is not None}
        assert errors[0] is None
        assert codes == {KafkaError._QUEUE_FULL}

    run(configured, use)


def test_producer_is_replaced_after_a_fatal_error(kafka: str, topic: str, settings: Any) -> None:
    """Records are acknowledged by the new producer, without a restart of the process."""

    configured = settings(kafka_bootstrap_servers=kafka, topic=topic)

    async def use(producer: RecordProducer) -> None:
        assert await producer.send([record_for(configured)] * 3) is None
        broken = producer._producer
        producer._fatal = True
        while producer._producer is broken:
            await asyncio.sleep(0)
        assert await producer.send([record_for(configured)] * 3) is None
        assert VERSION_HEADERS == [("tidemark-record", b"2")]  # shared by all records: unchanged

    run(configured, use)


def test_batches_fit_the_topic(kafka: str, settings: Any) -> None:
    """Small records go through in number, however little the topic takes at once; a large one
    alone is a 413."""
    name = f"producer-{next(_numbers)}"
    ensure_topic(kafka, name, 1, {"max.message.bytes": "20000"})
    configured = settings(kafka_bootstrap_servers=kafka, topic=name, capture_linger_ms=50)

    async def use(producer: RecordProducer) -> None:
        first = producer._producer
        async with asyncio.timeout(30):
            while producer._producer is first:
                await asyncio.sleep(0.001)
        records = [(name, os.urandom(1000), b"t:d") for _ in range(200)]
        assert await producer.send(records) is None
        async with asyncio.timeout(30):
            while True:
                error = await producer.send([(name, os.urandom(30_000), b"t:d")])
                assert error is not None
                refused = producer.refusal(error)
                if refused.status == 413:
                    return
                assert refused.status == 503, "the batches before the change are still refused"

    run(configured, use)


def test_smallest_limit_of_the_topics_decides(kafka: str, settings: Any) -> None:
    """Batches fit the topic that takes least, also one that only a rule leads to."""
    name = f"producer-{next(_numbers)}"
    other = f"{name}-by-rule"
    ensure_topic(kafka, name, 1)
    ensure_topic(kafka, f"{name}_historical", 1, {"max.message.bytes": "50000"})
    ensure_topic(kafka, other, 1, {"max.message.bytes": "20000"})
    configured = settings(kafka_bootstrap_servers=kafka, topic=name, capture_linger_ms=50)

    async def use(producer: RecordProducer) -> None:
        async with asyncio.timeout(30):
            while producer._configuration["batch.size"] != 50_000:
                await asyncio.sleep(0.001)
            records = [(other, os.urandom(1000), b"t:d") for _ in range(40)]
            while (error := await producer.send(records)) is not None:
                assert producer.refusal(error).status == 503, "the event itself is not too large"
        assert producer._configuration["batch.size"] == 20_000

    run(configured, use)


def test_counters_tell_what_kafka_has(kafka: str, topic: str, settings: Any) -> None:
    """Acknowledged and failed records are counted, the latter by their reason."""
    configured = settings(kafka_bootstrap_servers=kafka, topic=topic)

    async def use(producer: RecordProducer) -> None:
        good = record_for(configured)
        assert await producer.send([good] * 3) is None
        assert await producer.send([(f"{topic}-not-there", b"{}", None)]) is not None
        assert (producer.records_produced, producer.records_acknowledged) == (4, 3)
        assert sum(producer.records_failed.values()) == 1
        assert producer.queue_depth == 0

    run(configured, use)


def test_defect_is_told(settings: Any) -> None:
    """A thread that died or hangs is a defect, which only a new process mends."""
    configured = settings(kafka_bootstrap_servers="127.0.0.1:1", capture_ack_timeout_ms=300)

    async def use(producer: RecordProducer) -> None:
        assert producer.defect() is None
        producer._watch.stop()
        async with asyncio.timeout(30):
            while producer.defect() is None:
                await asyncio.sleep(0.01)
        assert "kafka-watch has died" in str(producer.problem())

    run(configured, use)


def test_unanswered_records_end_at_the_deadline(settings: Any) -> None:
    """Without Kafka the future ends with an error that becomes a 503, and nothing waits on."""
    configured = settings(kafka_bootstrap_servers="127.0.0.1:1", capture_ack_timeout_ms=300)

    async def use(producer: RecordProducer) -> None:
        error = await producer.send([record_for(configured)])
        assert error is not None
        refused = producer.refusal(error)
        assert (refused.status, refused.retry_after) == (503, 1)
        while producer._waiting:
            await asyncio.sleep(0)

    run(configured, use)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that stands still until the test moves it."""
    now = {"now": 100.0}
    monkeypatch.setattr("capture_api.kafka.health.time.monotonic", lambda: now["now"])
    return now


def test_breaker_lets_one_probe_through(clock: dict[str, float]) -> None:
    """While Kafka is away one request each half second may try; a delivery closes the breaker."""
    health = KafkaHealth("events")
    health.delivered()
    health.brokers_down("all are down")
    assert health.take_probe(), "no delivery has failed yet"
    health.delivery_failed("timed out")
    assert health.is_open
    assert [health.take_probe() for _ in range(3)] == [True, False, False]
    assert not health.may_try()
    clock["now"] += PROBE_SECONDS
    assert health.may_try()
    assert [health.take_probe() for _ in range(2)] == [True, False]
    health.delivered()
    assert not health.is_open
    assert all(health.take_probe() for _ in range(3))


def test_breaker_opens_without_a_failed_delivery(clock: dict[str, float]) -> None:
    """A lost connection may come back within AWAY_SECONDS; after that nobody is let wait."""
    health = KafkaHealth("events")
    health.delivered()
    health.brokers_down("all are down")
    assert not health.is_open
    assert health.problem() is not None
    clock["now"] += AWAY_SECONDS
    assert health.is_open
    health.looked()
    assert not health.is_open


def test_failed_delivery_alone_does_not_open_the_breaker(clock: dict[str, float]) -> None:
    """As long as a broker is reachable, every request may try."""
    health = KafkaHealth("events")
    health.looked()
    health.delivery_failed("not enough replicas")
    assert not health.is_open


def test_readiness_names_the_reason(clock: dict[str, float]) -> None:
    """Ready after an answer; not before, not long after, not without the topic or a broker."""
    health = KafkaHealth("events")
    assert "has not answered" in str(health.problem())
    health.looked()
    assert health.problem() is None
    clock["now"] += RECENT_SECONDS
    assert "has not answered" in str(health.problem())
    health.topic_missing("events")
    assert "no topic 'events'" in str(health.problem())
    health.topic_found("events")
    health.looked()
    assert health.problem() is None
    health.topic_missing("events_historical")
    assert health.problem() is None, "only requests that need it are refused"
    health.look_failed("timed out")
    assert "timed out" in str(health.problem())
    health.delivered()
    assert health.problem() is None
