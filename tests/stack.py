"""A topic, a lake, a ledger and a database of a test's own, on Kafka and ClickHouse that are real.

Invariant of `account`: it asks what is really there, by offsets: ClickHouse's rows, and the lake's
files of duplicates that the ledger names. It does not ask the balance that staging reported.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import clickhouse_connect
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from sqlalchemy import Engine

from assets.pipeline import plan
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.errors import TransientError
from assets.pipeline.lake import Lake
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.topic import Topic
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import all_batches, planned_ends, record_plan
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.settings import Settings
from tests.killable import Killable
from tests.records import Sent, produce, value_of

ROOT = Path(__file__).parents[1]

Place = tuple[int, int]
"""A partition and an offset."""


class ClickHouseServer(Killable):
    """A local ClickHouse in a folder of its own; it keeps its data and port over a crash."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = 0

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ClickHouseServer:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "local_stack.clickhouse", "--data", str(self.data)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " ready on http://" in line, line or "ClickHouse did not start"
        self.port = int(line.split(" ready on http://")[1].split(",")[0].rsplit(":", 1)[1])
        return self


@dataclass(frozen=True)
class Account:
    """Where each record was found; a place that is found twice stands here twice."""

    events: list[Place]
    dead_letters: list[Place]
    duplicates: list[Place]

    @property
    def places(self) -> Counter[Place]:
        """Every place, and how often it was found."""
        return Counter([*self.events, *self.dead_letters, *self.duplicates])


@dataclass(frozen=True)
class Stack:
    """One topic's way, from Kafka to ClickHouse."""

    settings: Settings

    @property
    def kafka(self) -> str:
        """Kafka's bootstrap servers."""
        return self.settings.bootstrap_servers

    @property
    def database(self) -> str:
        """The database of its tables."""
        return self.settings.clickhouse_database

    @cached_property
    def ledger(self) -> Engine:
        """Its ledger."""
        return open_ledger(self.settings.ledger)

    @cached_property
    def client(self) -> Client:
        """A client of its ClickHouse."""
        return clickhouse_connect.get_client(
            dsn=self.settings.clickhouse_address, autogenerate_session_id=False
        )

    @cached_property
    def topic(self) -> Topic:
        """Its topic's metadata."""
        return Topic(self.settings.kafka_client, self.settings.topic)

    def make_topic(self, partitions: int = 1, **config: str) -> Stack:
        """Make the topic, with the broker's times unless `config` says otherwise."""
        return self._make(self.settings.topic, partitions, config)

    def make_topics(self, partitions: int = 1) -> Stack:
        """Make the main topic and those beside it."""
        for name in self.settings.topics:
            self._make(name, partitions, {})
        return self

    def _make(self, name: str, partitions: int, config: dict[str, str]) -> Stack:
        admin = AdminClient({**self.settings.kafka_client})
        config = {"message.timestamp.type": "LogAppendTime", **config}
        admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result()
        self.await_partitions(partitions, name)
        return self

    def delete_topic(self, name: str | None = None) -> None:
        """Delete a topic, the main one unless said, and return when the brokers forgot it."""
        name = name or self.settings.topic
        admin = AdminClient({**self.settings.kafka_client})
        admin.delete_topics([name])[name].result()
        while name in admin.list_topics(timeout=10).topics:
            pass

    def await_partitions(self, partitions: int, name: str | None = None) -> None:
        """Return when every partition has a leader that answers."""
        topic = self.topic if name is None else Topic(self.settings.kafka_client, name)
        while True:
            try:
                if topic.identity().partitions == partitions:
                    topic.highs(range(partitions))
                    return
            except TransientError:  # its leaders are not chosen yet
                continue

    def send(
        self, *records: Sent | bytes | None, topic: str | None = None, **options: str
    ) -> list[Place]:
        """Put records, or bare values for partition 0, into a topic: the main one unless said."""
        return produce(
            self.kafka,
            topic or self.settings.topic,
            [record if isinstance(record, Sent) else Sent(record) for record in records],
            **options,
        )

    def send_numbers(self, numbers: Iterable[int], partitions: int = 1) -> list[Place]:
        """Put sound records into the topic, spread over its partitions."""
        return self.send(*(Sent(value_of(number), number % partitions) for number in numbers))

    def plan(self, max_offsets: int = 1_000_000, name: str | None = None) -> Batch | None:
        """Plan the next batch of a topic, the main one unless said, and no more."""
        topic = self.topic if name is None else Topic(self.settings.kafka_client, name)
        watermark = plan.see_watermark(topic)
        identity = watermark.identity
        ends = planned_ends(self.ledger, identity.cluster_id, identity.topic_id)
        cut = plan.cut_next(topic, watermark, ends, max_offsets)
        if cut is None:
            return None
        batch = plan.make_batch(
            cut,
            identity,
            topic=topic.name,
            run_id="planner",
            code_version="1",
            planned_at=now_us(),
        )
        with self.worker().lease() as lease:
            record_plan(self.ledger, lease, batch)
        return batch

    def worker(self, run_id: str = "run") -> Worker:
        """A worker that keeps what it says to itself."""
        return Worker(self.settings, self.ledger, run_id, say=lambda line: None)

    def run(self, run_id: str = "run") -> list[Batch]:
        """One micro-batch, from plan to dead letters; gives all batches."""
        worker = self.worker(run_id)
        stage_batches(worker)
        load_batches(worker)
        load_dead_letters(worker)
        return self.batches()

    def batches(self) -> list[Batch]:
        """All batches of all topics, as the ledger has them."""
        return all_batches(self.ledger, *self.settings.topics)

    def rows(self, query: str, **parameters: Any) -> list[Sequence[Any]]:
        """What ClickHouse answers; `{database}` stands for the database's name."""
        text = query.replace("{database}", self.database)
        return list(self.client.query(text, parameters=parameters).result_rows)

    def lake_file(self, path: str) -> Path:
        """A file of the lake, where it is a folder."""
        return Path(self.settings.lake) / path

    def account(self) -> Account:
        """Where every record of the main topic is, as ClickHouse and the lake have it."""
        return self.account_of(self.settings.topic)

    def account_of(self, topic: str) -> Account:
        """Where every record of a topic is."""
        duplicates: list[Place] = []
        lake = Lake(self.settings.lake)
        for batch in all_batches(self.ledger, topic):
            file = batch.staged.file(Kind.DUPLICATES) if batch.staged else None
            if file is not None:
                table = pq.read_table(
                    lake.full_path(file.path), filesystem=lake.filesystem, partitioning=None
                )
                duplicates += zip(
                    table["_partition"].to_pylist(), table["_offset"].to_pylist(), strict=True
                )
        events, dead_letters = self._places("events", topic), self._places("dead_letters", topic)
        return Account(events, dead_letters, duplicates)

    def _places(self, table: str, topic: str | None = None) -> list[Place]:
        found = self.rows(
            f"SELECT _partition, _offset FROM {{database}}.{table} WHERE _topic = {{topic:String}}",
            topic=topic or self.settings.topic,
        )
        return [(partition, offset) for partition, offset in found]

    def close(self) -> None:
        """Give back what it holds of the shared servers."""
        self.client.command(f"DROP DATABASE IF EXISTS {self.database} SYNC")
        self.client.close()


def cannot_be_read(path: Path) -> Path:
    """Let every read of a file fail with an error of the system; gives where the file is now."""
    whole = path.rename(path.with_suffix(".whole"))
    path.symlink_to(path.name)  # to itself: even root gets ELOOP
    return whole
