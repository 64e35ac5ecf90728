"""`python -m tests.faults.soak --minutes N --seed S`: the real stack, while everything is killed.

    producer ──▶ broker ──▶ workers ──▶ ClickHouse         killer: one of the three, at random
       └── what was acknowledged ──────────────▶ proof: every record once, no offset unaccounted

A broker, a ClickHouse, a ledger and a lake of its own, in a temporary folder. Worker after worker
runs a micro-batch; the seed decides who is killed and when. At the end everything is started, what
is left is carried through, and the log of each topic, read by a consumer of its own, is held
against what ClickHouse and the lake have. Exit code 1 when anything is lost or doubled.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Message, Producer

from assets.pipeline.batch import Batch, Range, State
from assets.pipeline.read import read_ranges
from assets.pipeline.topic import Topic
from orchestration.settings import Settings
from tests.conftest import Broker
from tests.faults.run_worker import AGAIN
from tests.records import VERSION_HEADERS, value_of
from tests.stack import ROOT, ClickHouseServer, Place, Stack

PARTITIONS = 3
BATCH_RECORDS = 300
REPEATED = 20
"""One of so many records is sent twice, as clients do after a lost answer."""
WORKER_SECONDS = 180.0
_WEIGHTS = {"worker": 6, "ClickHouse": 3, "broker": 1}


@dataclass
class Sender:
    """Puts numbered records into the topics at a steady rate, through every outage of Kafka."""

    servers: str
    topics: tuple[str, ...]
    rate: int
    sent: int = 0
    acknowledged: int = 0
    failed: list[str] = field(default_factory=list)
    uuids: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `finish`."""
        producer = Producer(
            {
                "bootstrap.servers": self.servers,
                "enable.idempotence": "true",
                "linger.ms": "5",
                "message.timeout.ms": "600000",
                "reconnect.backoff.max.ms": "500",
                "log_level": "0",
            }
        )
        started = time.monotonic()
        while not self._over.wait(0.02):
            due = int((time.monotonic() - started) * self.rate)
            while self.uuids < due:
                self._send(producer, self.uuids)
                if self.uuids % REPEATED == 0:
                    self._send(producer, self.uuids)
                self.uuids += 1
            producer.poll(0)
        left = producer.flush(120)
        assert left == 0, f"{left} records were not acknowledged"

    def _send(self, producer: Producer, number: int) -> None:
        producer.produce(
            self.topics[number % 7 % len(self.topics)],
            value_of(number),
            key=b"token:person",
            partition=number % PARTITIONS,
            headers=list(VERSION_HEADERS),
            on_delivery=self._delivered,
        )
        self.sent += 1

    def _delivered(self, error: object, _message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self.failed.append(str(error))

    def finish(self) -> None:
        """No more records; `run` returns when the last one is acknowledged."""
        self._over.set()


@dataclass
class Soak:
    """The parts, and how often each was killed."""

    home: Path
    seed: int
    rate: int = 200
    stagers: int = 1
    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    offsets: int = 0
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        for name in ("kafka", "clickhouse"):
            (self.home / name).mkdir(parents=True)
        self._broker = Broker(self.home / "kafka").start()
        self._server = ClickHouseServer(self.home / "clickhouse").start()
        self._stack = Stack(
            Settings(
                home=self.home / "home",
                kafka_bootstrap_servers=self._broker.bootstrap_servers,
                clickhouse_url=self._server.address,
                batch_max_records=BATCH_RECORDS,
                stagers=self.stagers,
                lease_seconds=5,
                table_backoff_max_seconds=1,
                batch_backoff_max_seconds=1,
            )
        ).make_topics(PARTITIONS)

    def run(self, seconds: float, lives: int = 0) -> None:
        """Send, work and kill for so long; then carry everything through, and account for it.

        For longer, on a slow machine, until so many workers have lived.
        """
        sender = Sender(self._stack.kafka, self._stack.settings.topics, self.rate)
        thread = threading.Thread(target=sender.run)
        thread.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end or lives > 0:
                self._tick(end)
                lives -= 1
        finally:
            sender.finish()
            thread.join()
        for _ in range(20):
            code = self._worker().wait(WORKER_SECONDS)
            if code == 0:
                break
            self._note(code)
        self._account(sender)

    def _worker(self) -> subprocess.Popen[bytes]:
        values = self._stack.settings.model_dump(mode="json", exclude_defaults=True)
        environment = {f"TIDEMARK_{name.upper()}": str(value) for name, value in values.items()}
        with (self.home / "workers.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.run_worker"],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )

    def _tick(self, end: float) -> None:
        """One worker's life: to its end, unless somebody dies first."""
        worker = self._worker()
        patience = self._dice.uniform(0.5, 6.0)
        victim = self._dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        try:
            self._note(worker.wait(min(patience, max(0.1, end - time.monotonic()))))
            return
        except subprocess.TimeoutExpired:
            self.kills[victim] += 1
        if victim == "worker":
            worker.kill()
        elif victim == "ClickHouse":
            self._server.kill()
            self._server.start()
        else:
            self._broker.kill()
            self._broker.start()
        try:
            self._note(worker.wait(WORKER_SECONDS), killed=victim == "worker")
        finally:
            worker.kill()
            worker.wait()

    def _note(self, code: int, killed: bool = False) -> None:
        self.runs[code] += 1
        if code not in (0, AGAIN) and not killed:
            self.trouble.append(f"a worker ended with exit code {code}")

    def _account(self, sender: Sender) -> None:
        """Hold every topic's log against what is there."""
        stack = self._stack
        self.trouble += sender.failed[:3]
        if sender.acknowledged != sender.sent:
            self.trouble.append(f"{sender.sent} sent, {sender.acknowledged} acknowledged")
        batches = stack.batches()
        self.trouble += [
            f"batch {batch.batch_id} is {batch.state}: {batch.note}"
            for batch in batches
            if batch.state is not State.COMMITTED
        ]
        for name in stack.settings.topics:
            log, wanted = self._log(name)
            self.offsets += wanted.total()
            found = stack.account_of(name).places
            self.lost += (wanted - found).total()
            self.doubled += (found - wanted).total()
            self.trouble += self._untiled(name, batches, log)
        ((rows, uuids),) = stack.rows(
            "SELECT count(), uniqExact(project_id, uuid) FROM {database}.events"
        )
        if not rows == uuids == sender.uuids:
            self.trouble.append(f"{sender.uuids} events sent, {uuids} stored, in {rows} rows")

    def _log(self, name: str) -> tuple[list[Range], Counter[Place]]:
        """All there is of a topic: its ranges, and where its records are."""
        highs = Topic(self._stack.settings.kafka_client, name).highs(range(PARTITIONS))
        ranges = [Range(partition, 0, high) for partition, high in highs.items()]
        places: Counter[Place] = Counter()
        for chunk in read_ranges(self._stack.settings.kafka_client, name, ranges):
            records = chunk.records
            places.update(
                zip(
                    records.column("partition").to_pylist(),
                    records.column("offset").to_pylist(),
                    strict=True,
                )
            )
        return ranges, places

    def _untiled(self, name: str, batches: list[Batch], log: list[Range]) -> list[str]:
        """Where the batches of a topic are not its log, cut into pieces."""
        found = []
        for lane in log:
            at = 0
            pieces = (r for batch in batches if batch.topic == name for r in batch.ranges)
            for piece in sorted(r for r in pieces if r.partition == lane.partition):
                if piece.start != at:
                    found.append(f"{name} {piece} follows {at}")
                at = piece.end
            if at != lane.end:
                found.append(f"{name} partition {lane.partition} ends at {lane.end}, not {at}")
        return found

    def close(self) -> None:
        """Stop the parts."""
        self._server.kill()
        self._broker.kill()

    @property
    def is_well(self) -> bool:
        """Nothing lost, nothing doubled, nothing odd."""
        return not (self.lost or self.doubled or self.trouble)

    def __str__(self) -> str:
        kills = ", ".join(f"{name} {count}×" for name, count in sorted(self.kills.items()))
        runs = ", ".join(f"exit {code}: {count}" for code, count in sorted(self.runs.items()))
        lines = [
            f"seed {self.seed}: killed {kills or 'nobody'}; workers' runs: {runs}",
            f"{self.offsets} records in Kafka: lost {self.lost}, doubled {self.doubled}",
            *self.trouble,
        ]
        return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=200, help="records a second")
    parser.add_argument("--stagers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak") as home:
        soak = Soak(Path(home), options.seed, options.rate, options.stagers)
        try:
            soak.run(options.minutes * 60)
        finally:
            soak.close()
    print(soak)
    return 0 if soak.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
