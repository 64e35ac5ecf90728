"""The producer and its spool in one process: what goes there, and what each request is told."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from capture_api.events.records import Record
from capture_api.kafka.producer import RecordProducer
from capture_api.kafka.spool_folder import SpoolFolder, claim
from capture_api.refusal import Refused
from local_stack.kafka.topics import ensure_topic
from orchestration.settings import Settings

NOBODY = "127.0.0.1:1"

_numbers = itertools.count(1)


@pytest.fixture
def configured(kafka: str, settings: Any, tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings with a spool, and a topic that there is, unless the test says otherwise."""

    def make(**values: Any) -> Settings:
        name = f"spooled-{next(_numbers)}"
        ensure_topic(kafka, name, 1)
        standard = {
            "kafka_bootstrap_servers": kafka,
            "topic": name,
            "capture_spool_dir": str(tmp_path / "spool"),
            "capture_ack_timeout_ms": 2_000,
        }
        made: Settings = settings(**{**standard, **values})
        return made

    return make


def run(settings: Settings, use: Callable[[RecordProducer], Coroutine[Any, Any, None]]) -> None:
    """Use a started producer, and close it."""

    async def main() -> None:
        producer = RecordProducer(settings)
        producer.start()
        try:
            async with asyncio.timeout(60):
                await use(producer)
        finally:
            await producer.close()

    asyncio.run(main())


async def come_true(condition: Callable[[], bool]) -> None:
    """Wait for it; the limit is `run`'s."""
    while not condition():
        await asyncio.sleep(0.005)


def some(topic: str, count: int) -> list[Record]:
    """Small records."""
    return [(topic, f"{number}".encode(), b"t:d") for number in range(count)]


async def drained(producer: RecordProducer) -> None:
    """Wait until records go directly again."""
    spool = producer.spool
    assert spool is not None
    await come_true(lambda: not spool.active)
    assert (spool.records, spool.bytes, spool.oldest_seconds) == (0, 0, 0.0)


def test_full_queue_goes_to_the_spool(configured: Callable[..., Settings]) -> None:
    """What does not fit into librdkafka's queue is stored, and in Kafka in the end."""
    settings = configured(kafka_options={"queue.buffering.max.messages": "10"})

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        requests = [some(settings.topic, 8) for _ in range(30)]
        assert await asyncio.gather(*map(producer.send, requests)) == [None] * 30
        assert spool.records_stored > 0
        await drained(producer)
        assert spool.records_drained == spool.records_stored
        assert await producer.send(some(settings.topic, 3)) is None

    run(settings, use)


def test_each_record_is_told_of_by_itself(configured: Callable[..., Settings]) -> None:
    """Without room in the queue the rest goes to the spool; one without a topic is still named."""
    settings = configured(kafka_options={"queue.buffering.max.messages": "10"})
    nowhere = f"{settings.topic}-not-there"

    async def use(producer: RecordProducer) -> None:
        records = [*some(settings.topic, 2), (nowhere, b"x", None), *some(settings.topic, 40)]
        errors = await producer.send_each(records)
        assert [error is None for error in errors] == [index != 2 for index in range(43)]
        assert errors[2] is not None
        assert nowhere in producer.refusal(errors[2]).detail
        await drained(producer)

    run(settings, use)


def test_kafka_never_reached_fills_the_spool(
    configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """Requests of both kinds are acknowledged from the disk, and the numbers say what is there."""
    settings = configured(kafka_bootstrap_servers=NOBODY)

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        assert await producer.send(some("one", 3)) is None
        assert await producer.send_each(some("two", 2)) == [None, None]
        producer.check()
        assert producer.problem() is None
        assert "5 records" in str(producer.degraded())
        assert (spool.active, spool.records, spool.records_stored) == (True, 5, 5)
        assert spool.bytes > 0
        assert spool.oldest_seconds > 0

    run(settings, use)
    [path] = (tmp_path / "spool").iterdir()
    folder = claim(path, 1 << 20)
    assert folder is not None
    chunk = folder.read(folder.position, folder.sizes)
    assert chunk is not None
    assert chunk.records == some("one", 3) + some("two", 2)
    folder.close()


def test_full_disk_is_told_and_recovers(configured: Callable[..., Settings]) -> None:
    """While nothing can be written the answer is 503 and the server is not ready; then 200 again,
    and what was acknowledged before is still there."""
    settings = configured(kafka_bootstrap_servers=NOBODY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        assert await producer.send(some("one", 3)) is None
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            error = await producer.send([("one", os.urandom(1000), None)])
            assert error is not None
            assert producer.refusal(error).status == 503
            errors = await producer.send_each(some("one", 2)) if not spool.no_room() else [error]
            assert all(each is not None for each in errors)  # a KafkaError cannot be compared
            assert "cannot be written" in str(producer.problem())
            with pytest.raises(Refused) as caught:
                producer.check()
            assert (caught.value.status, caught.value.code) == (503, "spool_full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await come_true(lambda: spool.no_room() is None)
        assert await producer.send(some("one", 4)) is None
        assert spool.records == 7
        assert producer.problem() is None

    run(settings, use)


def test_record_that_kafka_never_takes_is_set_aside(
    kafka: str, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """One record too large for its topic does not hold up those behind it, and is not lost."""
    before = configured(kafka_bootstrap_servers=NOBODY)
    ensure_topic(kafka, "small", 1, {"max.message.bytes": "5000"})
    large = ("small", os.urandom(20_000), b"t:d")

    async def fill(producer: RecordProducer) -> None:
        records = [*some(before.topic, 5), large, *some(before.topic, 5)]
        assert await producer.send(records) is None

    run(before, fill)

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        await drained(producer)
        assert spool.records_refused == 1
        assert producer.records_acknowledged >= 10

    run(configured(topic=before.topic), use)
    [kept] = (tmp_path / "spool").glob("*/refused.segment")
    assert large[1] in kept.read_bytes()


def test_record_that_kafka_refuses_for_good_holds_up_nobody(
    configured: Callable[..., Settings], kafka: str, tmp_path: Path
) -> None:
    """It is no case for the spool; and in the spool, it is set aside and the others arrive."""
    settings = configured(kafka_options={"queue.buffering.max.messages": "10"})
    compacted = f"{settings.topic}-compacted"
    ensure_topic(kafka, compacted, 1, {"cleanup.policy": "compact"})
    without_key: Record = (compacted, b"x", None)

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        error = await producer.send([without_key])
        assert error is not None
        assert producer.refusal(error).status == 503
        assert not spool.active
        # The queue is full, so all of this goes through the spool.
        requests = [some(settings.topic, 8) for _ in range(10)]
        answers = [producer.send(records) for records in requests[:5]]
        answers += [producer.send([without_key])]
        answers += [producer.send(records) for records in requests[5:]]
        assert await asyncio.gather(*answers) == [None] * 11
        await drained(producer)
        assert spool.records_refused == 1
        assert await producer.send(some(settings.topic, 3)) is None

    run(settings, use)
    [kept] = (tmp_path / "spool").glob("*/refused.segment")
    assert kept.stat().st_size > 0


def test_missing_topic_is_refused_though_there_is_a_spool(
    configured: Callable[..., Settings],
) -> None:
    """A request for a topic that Kafka does not have is no case for the spool."""
    settings = configured()

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        error = await producer.send([(f"{settings.topic}-not-there", b"x", None)])
        assert error is not None
        assert producer.refusal(error).code == "topic_missing"
        assert not spool.active
        assert await producer.send(some(settings.topic, 1)) is None

    run(settings, use)


def test_segment_taken_away_does_not_stop_the_drain(
    configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """Whoever removes a segment by hand loses its records, and no others."""
    before = configured(kafka_bootstrap_servers=NOBODY, capture_spool_max_bytes=1 << 20)

    async def fill(producer: RecordProducer) -> None:
        for _ in range(8):
            assert await producer.send([(before.topic, os.urandom(50_000), None)] * 2) is None

    run(before, fill)

    async def use(producer: RecordProducer) -> None:
        await drained(producer)
        assert 0 < producer.records_acknowledged < 16
        assert producer.defect() is None

    after = configured(topic=before.topic)
    producer_start = RecordProducer.start

    def start_and_remove(producer: RecordProducer) -> None:
        producer_start(producer)
        min(tmp_path.glob("spool/*/*.segment")).unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordProducer, "start", start_and_remove)
        run(after, use)


def test_failed_delivery_goes_to_the_spool(configured: Callable[..., Settings]) -> None:
    """What librdkafka gives up on is stored, with all that was sent after it, in order."""
    settings = configured(capture_linger_ms=1_000)

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        assert await producer.send(some(settings.topic, 1)) is None
        first = producer.send(some(settings.topic, 3))
        each = producer.send_each(some(settings.topic, 4))
        producer._producer.purge()
        last = producer.send(some(settings.topic, 5))
        assert await asyncio.gather(first, each, last) == [None, [None] * 4, None]
        assert producer.records_failed["_PURGE_QUEUE"] >= 7
        assert spool.records_stored == 12
        await drained(producer)

    run(settings, use)


def test_disk_error_while_draining_skips_nothing(
    kafka: str, configured: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be set aside is tried again; what lies behind it waits, and all arrives."""
    before = configured(kafka_bootstrap_servers=NOBODY, capture_spool_max_bytes=64 << 20)
    small = f"{before.topic}-small"
    ensure_topic(kafka, small, 1, {"max.message.bytes": "5000"})

    async def fill(producer: RecordProducer) -> None:
        assert await producer.send([(small, os.urandom(20_000), None)]) is None
        for _ in range(50):
            assert await producer.send([(before.topic, os.urandom(100_000), None)]) is None

    run(before, fill)
    failures = iter([OSError(5, "a fault of the disk")] * 2)
    keep = SpoolFolder.set_aside

    def fail_first(folder: SpoolFolder, records: list[Record], now: float) -> None:
        for failure in failures:
            raise failure
        keep(folder, records, now)

    monkeypatch.setattr(SpoolFolder, "set_aside", fail_first)

    async def use(producer: RecordProducer) -> None:
        spool = producer.spool
        assert spool is not None
        await drained(producer)
        assert (spool.records_drained, spool.records_refused) == (51, 1)

    run(configured(topic=before.topic), use)
