"""Workers that stop at every failpoint until a test lets them go on, in one process.

    test ──step──▶ worker's thread runs to its next failpoint ──▶ test looks, kills, starts another
                   or the thread in which it loads early

Of all these threads one runs at a time; which of a worker's own goes on is drawn by its run id, so
that the same steps give the same. A worker that is killed here leaves what SIGKILL leaves: from
then on its ledger refuses it, so its lease stays taken and its attempt without an end. Kafka is a
list; ledger, lake and ClickHouse are real.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import queue
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from assets.pipeline import early_loads, stager_pool
from assets.pipeline import load as load_module
from assets.pipeline.batch import Range
from assets.pipeline.errors import BatchError, Gap, TransientError
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.read import Chunk
from assets.pipeline.registering import Made
from assets.pipeline.stager import stage_job
from assets.pipeline.stager_messages import Answer, Job, answer_of
from assets.pipeline.staging import stage_batches
from assets.pipeline.topic import Topic, TopicIdentity
from assets.pipeline.worker import Worker
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings
from tests.staging import APPENDED_AT, Record, chunks_of

STEP_SECONDS = 120.0
ENDED = "ended"
_AWAITS_LOADS = "awaits-loads"


class Killed(BaseException):
    """What a worker's thread gets instead of SIGKILL."""


class Refused(SQLAlchemyError):
    """A dead worker's write."""


class Log(Topic):
    """A topic in memory: records at offsets, some of which retention has taken."""

    def __init__(self, name: str, topic_id: str, partitions: int) -> None:
        self.name = name
        self.topic_id = topic_id
        self.records: list[list[Record | None]] = [[] for _ in range(partitions)]
        self.low = [0] * partitions
        _LOGS[name] = self

    def append(self, partition: int, value: bytes | None, *, marker: bool = False) -> int:
        """Put a record, or a marker that nobody is given, at a partition's end."""
        offset = len(self.records[partition])
        self.records[partition].append(None if marker else Record(partition, offset, value))
        return offset

    def identity(self) -> TopicIdentity:
        """What does not change while the test runs."""
        return TopicIdentity("cluster", self.topic_id, len(self.records))

    def lows(self, partitions: Iterable[int]) -> dict[int, int]:
        """The oldest offsets that retention has left."""
        return {partition: self.low[partition] for partition in partitions}

    def highs(self, partitions: Iterable[int]) -> dict[int, int]:
        """The ends."""
        return {partition: len(self.records[partition]) for partition in partitions}

    def starts_at(self, times: Mapping[int, int]) -> dict[int, int]:
        """Every record was appended at the same moment."""
        return {
            partition: self.low[partition]
            if ms <= APPENDED_AT and self.low[partition] < len(self.records[partition])
            else -1
            for partition, ms in times.items()
        }

    def read(self, ranges: Sequence[Range]) -> Iterator[Chunk]:
        """What a consumer is given of the ranges, in chunks of three."""
        for range_ in filter(len, ranges):
            if range_.start < self.low[range_.partition]:
                raise Gap(f"{range_} is gone")
            found = self.records[range_.partition][range_.start : range_.end]
            yield from chunks_of([record for record in found if record is not None], 3)


@dataclass(eq=False)
class Stepped:
    """One worker in a thread of its own. It waits at its start and at every failpoint.

    `at` is where the thread stands that ran last, `points` where each of its threads stands.
    """

    settings: Settings
    log: Log
    clickhouse: Client
    run_id: str
    at: str = "start"
    error: BaseException | None = None
    loses_next_answer: str = ""  # "before" the insert, or "after" it
    _dead: bool = False
    _standing: dict[threading.Thread, tuple[str, threading.Semaphore]] = field(default_factory=dict)
    _stops: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def start(self) -> Stepped:
        """Begin; nothing is done yet."""
        self._random = random.Random(self.run_id)
        self._thread = self.new_thread(self._run, self.at)
        return self

    @property
    def points(self) -> list[str]:
        """The points at which its threads stand."""
        return [point for point, _ in self._standing.values()]

    @property
    def ended(self) -> bool:
        """Whether it has come to its end, one way or the other."""
        return self.at == ENDED

    def step(self) -> str:
        """Let it go on to its next failpoint, or its end; gives where it stands then."""
        self._release(self._next())
        self.at = self._stops.get(timeout=STEP_SECONDS)
        if self.ended:
            self._thread.join(STEP_SECONDS)
            if self.error is not None and not isinstance(self.error, BatchError):
                raise self.error
        return self.at

    def finish(self) -> None:
        """Let it go on to its end."""
        while not self.ended:
            self.step()

    def kill(self) -> None:
        """End it where it stands; nothing that it does from now on is kept."""
        self._dead = True
        self.finish()
        for thread in list(self._standing):
            self._release(thread)
            thread.join(STEP_SECONDS)

    def reached(self, point: str) -> None:
        """Wait at a failpoint."""
        if not self._dead:
            go = self._stand(threading.current_thread(), point)
            self._stops.put(point)
            go.acquire()
        self.check_alive()

    def check_alive(self) -> None:
        """Raise Killed once it was killed."""
        if self._dead:
            raise Killed

    def new_thread(self, run: Callable[[], None], point: str) -> threading.Thread:
        """A thread of this worker, which stands at its beginning."""

        def stands_first() -> None:
            go.acquire()
            _WORKERS[threading.get_ident()] = self
            try:
                run()
            finally:
                del _WORKERS[threading.get_ident()]

        thread = threading.Thread(target=stands_first, name=self.run_id, daemon=True)
        go = self._stand(thread, point)
        thread.start()
        return thread

    def thread_ended(self) -> None:
        """The calling thread, not the worker's first, comes to its end: another one goes on."""
        self._stops.put("early-loads-done")

    def _stand(self, thread: threading.Thread, point: str) -> threading.Semaphore:
        go = threading.Semaphore(0)
        self._standing[thread] = point, go
        return go

    def _release(self, thread: threading.Thread) -> None:
        _, go = self._standing.pop(thread)
        go.release()

    def _next(self) -> threading.Thread:
        others = [thread for thread in self._standing if thread is not self._thread]
        if others and self._standing[self._thread][0] == _AWAITS_LOADS:
            return others[0]
        return self._random.choice([self._thread, *others])

    def _run(self) -> None:
        try:
            self.check_alive()
            self._work()
        except Killed:
            pass
        except BaseException as error:
            if not self._dead:
                self.error = error
        finally:
            self._stops.put(ENDED)

    def _work(self) -> None:
        ledger = open_ledger(self.settings.ledger)

        @event.listens_for(ledger, "begin")
        def _refuse(_connection: object) -> None:
            if self._dead:
                raise Refused("this worker is dead")

        worker = Worker(self.settings, ledger, self.run_id, say=lambda _: None)
        vars(worker).update(topics={self.log.name: self.log}, clickhouse=self.clickhouse)
        try:
            stage_batches(worker, [], loads_early=True)
            load_batches(worker)
            load_dead_letters(worker)
        finally:
            ledger.dispose()


class SteppedThread:
    """What early loads run in: a ThreadPoolExecutor of one, as far as they use it."""

    def __init__(self, *_: object) -> None:
        worker = _here()
        assert worker is not None
        self._worker = worker
        self._jobs: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[..., None], *arguments: object) -> None:
        """Put it in line."""
        self._jobs.append(lambda: job(*arguments))
        if self._thread is None:
            self._thread = self._worker.new_thread(self._run, "early-load")

    def shutdown(self, *, cancel_futures: bool) -> None:
        """Return when the job that runs is done."""
        assert cancel_futures
        self._jobs.clear()
        while self._thread is not None:
            self._worker.reached(_AWAITS_LOADS)

    def _run(self) -> None:
        with contextlib.suppress(Killed):
            while self._jobs:
                self._worker.check_alive()
                self._jobs.popleft()()
        self._thread = None
        self._worker.thread_ended()


class SteppedStager:
    """A stager without a process: it does a job in the worker's own thread, when it is given it.

    So what it makes is compared with the index of before whatever is registered first, as that of
    a process is; and a worker that is killed meanwhile takes it along. It is never killed alone,
    never falls silent and never stands still, as the processes of test_stagers.py do.
    """

    peak_bytes = 0
    has_ended = False

    def __init__(self, worker: Worker, share: int) -> None:
        self.name = f"stager:{next(_numbers)}"
        self._worker = copy.copy(worker)
        self._worker.share = share
        self._answer: Answer | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it has no job."""
        return self._answer is None

    def begin(self, job: Job) -> None:
        """Do it."""
        try:
            self._answer = answer_of(stage_job(self._worker, job), None, 0)
        except Exception as error:
            self._answer = answer_of(None, error, 0)

    def result(self) -> Made:
        """What came of it."""
        answer, self._answer = self._answer, None
        assert answer is not None
        return answer.result()

    def kill(self) -> None:
        """There is no process."""


def step_through_failpoints(patch: pytest.MonkeyPatch) -> None:
    """From now on, failpoints and inserts ask the Stepped worker in whose thread they are."""
    insert = load_module.insert

    def failpoint(name: str) -> None:
        worker = _here()
        if worker is not None:
            worker.reached(name)

    def send(*arguments: Any) -> None:
        worker = _here()
        loses, done = (worker.loses_next_answer, worker) if worker else ("", None)
        if done is not None:
            done.loses_next_answer = ""
        if loses != "before":
            insert(*arguments)
        if loses:
            raise TransientError("the connection was cut")

    patch.setattr(early_loads, "ThreadPoolExecutor", SteppedThread)
    patch.setattr(stager_pool, "Stager", SteppedStager)
    patch.setattr(load_module, "insert", send)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith(("assets.", "orchestration.")):
            for name, replacement in (
                ("failpoint", failpoint),
                ("read_ranges", _read),
                ("commit_offsets", lambda *_: None),
            ):
                if name in vars(module):
                    patch.setattr(module, name, replacement)


_numbers = itertools.count()
_WORKERS: dict[int, Stepped] = {}
_LOGS: dict[str, Log] = {}


def _here() -> Stepped | None:
    return _WORKERS.get(threading.get_ident())


def _read(_client: object, topic: str, ranges: Sequence[Range], *_: object) -> Iterator[Chunk]:
    return _LOGS[topic].read(ranges)
