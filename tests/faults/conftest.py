"""Workers as processes, records of every kind, and the proof that each came out once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from assets.pipeline.batch import Balance, State
from assets.pipeline.failpoints import VARIABLE
from tests.records import Sent, transaction, value_of
from tests.stack import ROOT, Place, Stack

WORKER_SECONDS = 120.0

BROKEN = b'{"v":1,"uuid":"cut off'


@dataclass
class Scene:
    """A topic with records of every kind, and workers on it."""

    stack: Stack
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stored: list[Place] = field(default_factory=list)  # records that have to be found
    delivered: Balance = field(default_factory=Balance)

    def fill(self, sound: int, partitions: int) -> None:
        """Put sound, repeated, broken, empty and aborted records into the topic."""
        stack, name = self.stack, self.stack.settings.topic
        repeated = range(0, sound, 25)
        self.stored += stack.send_numbers(range(sound), partitions)
        self.stored += stack.send(*(Sent(value_of(n), n % partitions) for n in repeated))
        self.stored += stack.send(*(Sent(BROKEN, n % partitions) for n in range(9)))
        stack.send(*(Sent(None, n % partitions) for n in range(6)))
        aborted = (Sent(value_of(sound + n), 0) for n in range(4))
        transaction(stack.kafka, name, f"{name}-aborted", aborted).abort_transaction()
        self.delivered = Balance(
            ok=sound, rejected=9, duplicate=len(repeated), tombstone=6, absent=5
        )

    def start_worker(self, failpoint: str = "") -> subprocess.Popen[bytes]:
        """Start a worker; with a failpoint, one that kills itself there."""
        values = self.stack.settings.model_dump(mode="json", exclude_defaults=True)
        environment = {
            **os.environ,
            **{f"TIDEMARK_{name.upper()}": str(value) for name, value in values.items()},
            VARIABLE: failpoint,
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.run_worker"], cwd=ROOT, env=environment
        )
        self.started.append(worker)
        return worker

    def work(self, failpoint: str = "") -> int:
        """Run a worker to its end; gives its exit code."""
        return self.start_worker(failpoint).wait(WORKER_SECONDS)

    def await_state(self, state: State, worker: subprocess.Popen[bytes]) -> None:
        """Return when some batch stands in that state, while the worker is alive."""
        end = time.monotonic() + WORKER_SECONDS
        while all(batch.state is not state for batch in self.stack.batches()):
            assert worker.poll() is None, f"the worker ended before a batch was {state}"
            assert time.monotonic() < end, f"no batch became {state}"

    def prove(self) -> None:
        """Every record is found at its offset, once; and the balances say the same."""
        batches = self.stack.batches()
        assert {batch.state for batch in batches} == {State.COMMITTED}
        assert self.stack.account().places == Counter(self.stored)
        balances = [batch.staged.balance for batch in batches if batch.staged]
        assert sum(balances, Balance()) == self.delivered
        for partition, high in self.stack.topic.highs(self.partitions()).items():
            ends = sorted(r for batch in batches for r in batch.ranges if r.partition == partition)
            assert ends[0].start == 0
            assert ends[-1].end == high
            assert all(one.end == other.start for one, other in pairwise(ends))
        uuids = self.stack.rows(
            "SELECT count(), uniqExact(project_id, uuid) FROM {database}.events"
        )
        assert uuids == [(self.delivered.ok, self.delivered.ok)]

    def partitions(self) -> range:
        """The topic's partitions."""
        return range(self.stack.topic.identity().partitions)


@pytest.fixture
def new_scene(new_stack: Callable[..., Stack]) -> Iterator[Callable[..., Scene]]:
    """Makes scenes with a filled topic; their workers are gone at the end."""
    scenes: list[Scene] = []

    def make(sound: int = 300, partitions: int = 2, **values: object) -> Scene:
        scenes.append(Scene(new_stack(**values).make_topic(partitions)))
        scenes[-1].fill(sound, partitions)
        return scenes[-1]

    yield make
    for scene in scenes:
        for worker in scene.started:
            worker.kill()
            worker.wait()
