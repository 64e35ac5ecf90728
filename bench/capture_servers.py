"""The servers that are measured: our capture API, started here, and a peer that runs already.

All write to one Kafka, each to a topic of its own with the same partitions. What a server has
answered with 200 is held against the end of its topic, so a server that drops or answers too early
gets no figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from bench.parts import bench_settings
from local_stack.kafka.topics import ensure_topic
from local_stack.processes import Foreground
from local_stack.stack import START_LIMIT_S, edges
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project
from orchestration.settings import Settings

PARTITIONS = 8
OURS = "tidemark"
PEER = "peer"

_WORKERS_SETTING = "capture_workers"
# What was counted is of no more use, and is removed by the segment.
_TOPIC = {"segment.bytes": str(64 << 20), "file.delete.delay.ms": "1000"}
_ASK_LIMIT_S = 30.0
_SETTLE_S = 0.2


@dataclass(frozen=True)
class Server:
    """A running server: the process to measure (with its descendants) and the topic it fills."""

    name: str
    url: str
    pid: int
    topic: str


class TopicEnds:
    """Counts what is in topics, by their ends, and clears them."""

    def __init__(self, bootstrap_servers: str) -> None:
        own: dict[str, str | int | float | bool] = {
            "bootstrap.servers": bootstrap_servers,
            "log_level": "0",
        }
        self._consumer = Consumer({**own, "group.id": "bench.capture"})
        self._admin = AdminClient(own)

    def count(self, topic: str) -> int:
        """Records that were ever written to the topic."""
        return sum(
            self._consumer.get_watermark_offsets(TopicPartition(topic, number), _ASK_LIMIT_S)[1]
            for number in range(self._partitions(topic))
        )

    def settled_count(self, topic: str) -> int:
        """`count`, once what the last window left under way has been written."""
        before, now = -1, self.count(topic)
        while now != before:
            time.sleep(_SETTLE_S)
            before, now = now, self.count(topic)
        return now

    def clear(self, topic: str) -> None:
        """Give the records up; the ends stay where they are."""
        everything = [
            TopicPartition(topic, number, -1) for number in range(self._partitions(topic))
        ]
        for future in self._admin.delete_records(everything).values():
            future.result(_ASK_LIMIT_S)

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def _partitions(self, topic: str) -> int:
        return len(self._consumer.list_topics(topic, _ASK_LIMIT_S).topics[topic].partitions)


@contextmanager
def own_servers(
    home: Path, bootstrap_servers: str, workers: list[int]
) -> Iterator[tuple[list[Server], str]]:
    """Capture APIs with so many workers each, ready, and a token that all of them know."""
    ledger_url = f"sqlite:///{home / 'ledger.db'}"
    ledger = open_ledger(ledger_url)
    token = create_project(ledger, "benchmark").token
    ledger.dispose()
    with ExitStack() as exits:
        servers = []
        for count in workers:
            name = OURS if count == 1 else f"{OURS} {count} workers"
            own = {_WORKERS_SETTING: count} if can_set_workers() else {}
            settings = bench_settings(
                home / f"workers-{count}",
                kafka_bootstrap_servers=bootstrap_servers,
                ledger_url=ledger_url,
                topic=f"bench_{count}",
                **own,
            )
            for topic in settings.topics:
                make_topic(bootstrap_servers, topic)
            servers.append(Server(name, *exits.enter_context(_started(settings))))
        yield servers, token


def can_set_workers() -> bool:
    """Whether the capture API can run with several workers."""
    return _WORKERS_SETTING in Settings.model_fields


def make_topic(bootstrap_servers: str, topic: str) -> None:
    """Make a topic to be filled by a benchmark, unless it exists."""
    ensure_topic(bootstrap_servers, topic, PARTITIONS, _TOPIC)


@contextmanager
def _started(settings: Settings) -> Iterator[tuple[str, int, str]]:
    capture = next(service for service in edges(settings) if service.name == "capture")
    with Foreground(settings.home, "a benchmark") as foreground:
        record = foreground.launch(capture)
        foreground.wait_ready(capture, START_LIMIT_S)
        yield settings.capture_address, record.pid, settings.topic
