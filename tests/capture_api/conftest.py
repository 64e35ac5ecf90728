"""A real capture API in a process of its own, and a reader of what it wrote to Kafka."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from local_stack.kafka.topics import ensure_topic
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import Project, create_project
from orchestration.settings import Settings
from tests.conftest import unused_port
from tests.records import read_value

PATIENCE_SECONDS = 30.0

_numbers = itertools.count(1)


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for the condition; fail with `what` when it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class StoredRecord:
    """One record as Kafka holds it."""

    key: str | None
    raw: bytes
    value: dict[str, Any]
    headers: list[Any]


class Capture:
    """A capture API process with its own topic and ledger."""

    def __init__(self, home: Path, kafka: str, topic: str, **environment: str) -> None:
        self.home, self.kafka, self.topic = home, kafka, topic
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{name: v for name, v in os.environ.items() if not name.startswith("TIDEMARK_")},
            "TIDEMARK_HOME": str(home),
            "TIDEMARK_KAFKA_BOOTSTRAP_SERVERS": kafka,
            "TIDEMARK_TOPIC": topic,
            **environment,
        }
        self.ledger = open_ledger(Settings(home=home).ledger)  # type: ignore[call-arg]
        self.project: Project = create_project(self.ledger, "tests")
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def token(self) -> str:
        """The token of its project."""
        return self.project.token

    def start(self, ready: bool = True) -> Capture:
        """Start the process and wait until it is ready, or at least alive."""
        with (self.home / "capture.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "capture_api", "--port", str(self.port)],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        path = "/_readiness" if ready else "/_liveness"
        until(lambda: self.status(path) == 200, f"{path} answers 200\n{self.log()}")
        return self

    def stop(self) -> int:
        """End the process for good; its exit code."""
        self.client.close()
        return self.stop_process()

    def restart(self) -> int:
        """End the process and start another one, on the same port; the first one's exit code."""
        code = self.stop_process()
        self.start()
        return code

    def stop_process(self) -> int:
        """End the process as an operator does; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """What it logged."""
        return (self.home / "capture.log").read_text()

    def status(self, path: str) -> int:
        """The status of a GET, or 0 when nobody answers."""
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def samples(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """What /metrics shows: values by name and label values."""
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(self.client.get("/metrics").text)
            for sample in family.samples
        }

    def batch(self, *events: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A batch body with the project's token."""
        return {"api_key": self.token, "batch": list(events), **more}

    def records(self, suffix: str = "") -> list[StoredRecord]:
        """Everything in the topic, or in the one beside it, now; partition by partition."""
        return read_topic(self.kafka, f"{self.topic}{suffix}")

    def records_of(self, response: httpx.Response, suffix: str = "") -> list[StoredRecord]:
        """The records of one request, found by its receipt."""
        receipt = response.headers["X-Request-Id"]
        return [r for r in self.records(suffix) if r.value["request_id"] == receipt]


def _ends_of(consumer: Consumer, lane: TopicPartition) -> tuple[int, int]:
    """The lane's first offset and its end; a new client does not know all partitions at once."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return consumer.get_watermark_offsets(lane, 10)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._UNKNOWN_PARTITION or time.monotonic() > end:
                raise


def read_topic(kafka: str, topic: str) -> list[StoredRecord]:
    """Every record of the topic up to its present end, partition by partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": "tests",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
        }
    )
    try:
        ends: dict[int, int] = {}
        starts = []
        for partition in consumer.list_topics(topic, 10).topics[topic].partitions:
            low, high = _ends_of(consumer, TopicPartition(topic, partition))
            if low < high:
                starts.append(TopicPartition(topic, partition, low))
                ends[partition] = high
        consumer.assign(starts)
        found: dict[int, list[StoredRecord]] = {partition: [] for partition in ends}
        while ends:
            message = consumer.poll(PATIENCE_SECONDS)
            assert message is not None, f"{topic} stops before the offsets {ends}"
            assert message.error() is None, message.error()
            key, raw, partition = message.key(), message.value(), message.partition()
            offset = message.offset()
            assert raw is not None
            assert partition is not None
            assert offset is not None
            found[partition].append(
                StoredRecord(
                    key.decode() if key is not None else None,
                    raw,
                    read_value(raw),
                    list(message.headers() or []),
                )
            )
            if offset + 1 >= ends[partition]:
                consumer.incremental_unassign([TopicPartition(topic, partition)])
                del ends[partition]
        return [record for partition in sorted(found) for record in found[partition]]
    finally:
        consumer.close()


@pytest.fixture(scope="module")
def new_capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Capture]]:
    """Makes capture APIs, not started yet, each with a fresh topic; all are gone at the end."""
    made: list[Capture] = []

    def make(kafka: str, *, make_topic: bool = True, **environment: str) -> Capture:
        topic = f"events-{os.getpid()}-{next(_numbers)}"
        if make_topic:
            for name in (topic, f"{topic}_historical", f"{topic}_overflow"):
                ensure_topic(kafka, name, 3)
        made.append(Capture(tmp_path_factory.mktemp("capture"), kafka, topic, **environment))
        return made[-1]

    yield make
    for capture in made:
        capture.stop()


@pytest.fixture(scope="module")
def capture(kafka: str, new_capture: Callable[..., Capture]) -> Capture:
    """A running capture API that the tests of a module share."""
    return new_capture(kafka).start()


@pytest.fixture(name="until", scope="session")
def until_fixture() -> Callable[..., None]:
    """Waits for a condition: `until(condition, what, seconds)`."""
    return until
