"""Workers as processes, records of every kind, and the proof that each came out once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from assets.pipeline.batch import Balance, State
from assets.pipeline.failpoints import VARIABLE
from tests.faults.run_worker import AGAIN
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.forks import Forked
from tests.ledger.conftest import postgresql  # noqa: F401  # a fixture
from tests.records import Sent, transaction, value_of
from tests.stack import Place, Stack

WORKER_SECONDS = 120.0

BROKEN = b'{"v":1,"uuid":"cut off'


@dataclass
class Scene:
    """A topic with records of every kind, and workers on it."""

    stack: Stack
    started: list[Forked] = field(default_factory=list)
    stored: list[Place] = field(default_factory=list)  # records that have to be found
    delivered: Balance = field(default_factory=Balance)
    next_number: int = 10_000

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

    def send_more(self, count: int) -> None:
        """Put sound records into the topic, with numbers of their own."""
        numbers = range(self.next_number, self.next_number + count)
        self.next_number += count
        self.stored += self.stack.send_numbers(numbers, len(self.partitions()))
        self.delivered += Balance(ok=count)

    def send_twice(self, count: int) -> None:
        """Put sound records into each of two partitions, with the same numbers in both."""
        numbers = range(self.next_number, self.next_number + count)
        self.next_number += count
        for partition in range(2):
            self.stored += self.stack.send(*(Sent(value_of(n), partition) for n in numbers))
        self.delivered += Balance(ok=count, duplicate=count)

    def start_worker(
        self, failpoint: str = "", *, file_bytes: int | None = None, **changed: object
    ) -> Forked:
        """Start a worker; with a failpoint, one that kills (or stops) itself there.

        It can write no file larger than `file_bytes`, and `changed` are settings of its own.
        """
        command = ["-m", "tests.faults.run_worker"]
        return self._start(command, failpoint, file_bytes, changed)

    def _start(
        self,
        command: Sequence[str],
        failpoint: str,
        file_bytes: int | None,
        changed: Mapping[str, object],
    ) -> Forked:
        values = self.stack.settings.model_dump(mode="json", exclude_defaults=True) | changed
        environment = {
            **os.environ,
            **{f"TIDEMARK_{name.upper()}": str(value) for name, value in values.items()},
            VARIABLE: failpoint,
        }
        worker = Forked(command, environment, file_bytes)
        self.started.append(worker)
        return worker

    def work(self, failpoint: str = "", *, file_bytes: int | None = None, **changed: object) -> int:
        """Run a worker to its end; gives its exit code."""
        worker = self.start_worker(failpoint, file_bytes=file_bytes, **changed)
        return worker.wait(WORKER_SECONDS)

    def tidemark(self, *arguments: str, failpoint: str = "") -> int:
        """Run a command of `tidemark` to its end; gives its exit code."""
        return self.start_tidemark(*arguments, failpoint=failpoint).wait(WORKER_SECONDS)

    def start_tidemark(self, *arguments: str, failpoint: str = "", **changed: object) -> Forked:
        """Start a command of `tidemark`."""
        command = ["-c", "from orchestration.cli import main; main()", *arguments]
        return self._start(command, failpoint, None, changed)

    def work_when_free(self) -> int:
        """Run workers, as ticks do, until one of them is let in; gives its exit code."""
        end = time.monotonic() + WORKER_SECONDS
        while (code := self.work()) == AGAIN:
            assert time.monotonic() < end, "no worker was let in"
        return code

    def kill_at(self, failpoint: str) -> None:
        """Run a worker that is killed at the failpoint."""
        assert self.work(failpoint) == -signal.SIGKILL

    def let_the_lease_run_out(self) -> None:
        """As if the seconds had passed that a silent worker keeps it."""
        with self.stack.ledger.begin() as connection:
            connection.exec_driver_sql("UPDATE leases SET expires_at = 0")

    def stop_at(self, failpoint: str) -> Forked:
        """Start a worker, and return when it has stopped at the failpoint."""
        worker = self.start_worker(f"{failpoint}:stop")
        self.await_stop(worker)
        return worker

    def await_stop(self, worker: Forked) -> None:
        """Return when a worker has stopped at its failpoint."""
        assert worker.await_stop(), "the worker ended before its failpoint"

    def wake(self, worker: Forked) -> int:
        """Let a stopped worker go on; gives its exit code."""
        worker.send_signal(signal.SIGCONT)
        return worker.wait(WORKER_SECONDS)

    def await_state(self, state: State, worker: Forked) -> None:
        """Return when some batch stands in that state, while the worker is alive."""
        self.await_true(
            lambda: any(batch.state is state for batch in self.stack.batches()),
            f"a batch was {state}",
            worker,
        )

    def await_true(self, condition: Callable[[], bool], what: str, worker: Forked) -> None:
        """Return when the condition holds, while the worker is alive."""
        end = time.monotonic() + WORKER_SECONDS
        while not condition():
            assert worker.poll() is None, f"the worker ended before {what}"
            assert time.monotonic() < end, f"not in time: {what}"

    def prove(self) -> None:
        """Every record is found at its offset, once; and the balances say the same."""
        batches = self.stack.batches()
        assert {batch.state for batch in batches} == {State.COMMITTED}
        self.prove_places()
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

    def prove_places(self) -> None:
        """Lost 0, doubled 0: each record is where it has to be, once."""
        found, wanted = self.stack.account().places, Counter(self.stored)
        assert wanted - found == Counter(), "lost"
        assert found - wanted == Counter(), "doubled"

    def partitions(self) -> range:
        """The topic's partitions."""
        return range(self.stack.topic.identity().partitions)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_values(request: pytest.FixtureRequest) -> dict[str, object]:
    """The settings of a new ledger, of either kind."""
    if request.param == "sqlite":
        return {}
    return {"ledger_url": request.getfixturevalue("postgresql")()}


def is_insert(exchange: Exchange) -> bool:
    """Whether a request is the load of a staged file of events."""
    return "INSERT" in exchange.target and ".events" in exchange.target


@pytest.fixture
def proxy(clickhouse: str) -> Iterator[FaultyProxy]:
    """A way to ClickHouse that a test may break."""
    with FaultyProxy(int(clickhouse.rpartition(":")[2])) as between:
        yield between


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
        scene.stack.ledger.dispose()
