"""Side by side: who stages which partitions, and when the run does it all by itself."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from assets.pipeline import side_by_side, stager_pool
from assets.pipeline import stager as stager_module
from assets.pipeline.batch import IMPORT_PREFIX, Balance, Batch, Kind, Range, State
from assets.pipeline.errors import (
    BatchError,
    Gap,
    KafkaAway,
    KafkaRefused,
    KeyFileUnreadable,
    LeaseLost,
    StagerGone,
    UnknownTrouble,
)
from assets.pipeline.key_upkeep import Window
from assets.pipeline.lake import Lake
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.registering import Made
from assets.pipeline.room import NoRoom
from assets.pipeline.side_by_side import choose_lanes, is_worth_it
from assets.pipeline.staged_files import staged_path
from assets.pipeline.stager_messages import Answer, Here, Job, Ready, Terms, answer_of
from assets.pipeline.stager_pool import Stager, StagerPool, StagerUnborn
from assets.pipeline.staging import stage_batches
from assets.pipeline.topic import Topic
from assets.pipeline.version import code_version
from assets.pipeline.worker import Worker
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.keys import live_key_files
from orchestration.settings import Settings
from tests.pids import await_ended
from tests.records import value_of
from tests.stack import Stack
from tests.staging import batch_of

NewStack = Callable[..., Stack]


@pytest.mark.parametrize(
    ("waits", "busy", "idle", "most", "chosen"),
    [
        ({0: 50, 1: 50}, [], 2, 40, {0}),  # the other one is left to the other stager
        ({0: 50, 1: 50}, [0], 1, 40, {1}),
        ({0: 50, 1: 50}, [0, 1], 1, 40, set()),
        ({0: 9, 1: 50, 2: 41}, [], 2, 40, {1}),  # even by what waits, not by partitions
        ({0: 30, 1: 30, 2: 30, 3: 30}, [], 2, 40, {0, 2}),
        ({0: 500}, [], 4, 40, {0}),
        ({0: 9, 1: 9}, [], 2, 40, {0, 1}),  # not worth two batches
        ({0: 10, 1: 10}, [], 2, 40, {0}),
        ({0: 500, 1: 9}, [0], 1, 40, set()),  # not worth a batch: it is in the next one
        ({0: 500, 1: 9}, [], 1, 40, {0, 1}),
    ],
)
def test_partitions_are_shared_out_evenly(
    waits: dict[int, int], busy: list[int], idle: int, most: int, chosen: set[int]
) -> None:
    """Each goes to one stager, by the offsets that wait in it."""
    assert choose_lanes(waits, busy, idle, most) == chosen


def test_a_stager_that_was_killed_while_idle_gets_no_batch(new_stack: NewStack) -> None:
    """Another one takes its place: the batch would be told to be the reason."""
    stack = new_stack(stagers=2).make_topic()
    with StagerPool(stack.worker()) as pool:
        first = pool.take()
        assert first is not None
        assert pool.take() is first
        pid = int(first.name.rpartition(":")[2])
        os.kill(pid, signal.SIGKILL)
        await_ended([pid])
        second = pool.take()
        assert second is not None
        assert second is not first
        assert second.is_idle
        assert not second.has_ended


@pytest.mark.parametrize(
    ("values", "worth"),
    [({}, True), ({"letters": 100}, False), ({"topic": f"{IMPORT_PREFIX}exports"}, False)],
)
def test_only_what_stagers_take_is_worth_them(
    settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    worth: bool,
) -> None:
    """Redrives and imports that were planned before are staged by the run, however large."""
    monkeypatch.setattr(side_by_side, "unread", lambda *_: {0: 30})
    monkeypatch.setattr(side_by_side, "most_offsets", lambda *_: 40)
    pool = cast(StagerPool, SimpleNamespace(count=2))
    topic = cast(Topic, SimpleNamespace(name="events"))
    begun = [replace(batch_of(Range(1, 0, 50)), **values)]
    worker = cast(Worker, SimpleNamespace(settings=settings()))
    assert is_worth_it(worker, pool, topic, cast(Any, None), begun) is worth


def test_batches_at_once_have_different_partitions(new_stack: NewStack) -> None:
    """All is loaded, in batches of which no two that overlap in time share a partition."""
    stack = new_stack(batch_max_records=50, stagers=3).make_topic(4)
    sent = stack.send_numbers(range(400), 4)
    worker, said = talking(stack)
    staged = carry(worker)
    assert Counter(stack.account().events) == Counter(sent)
    assert {batch.state for batch in stack.batches()} == {State.COMMITTED}
    assert len(worker.stagers) == 3
    assert all(worker.stagers.values()), "each says how much memory it took"
    assert len({attempt.host for attempt in tries(stack, staged)}) == 3
    spans = [(a.started_at, a.ended_at or 0, b) for b in staged for a in tries(stack, [b])]
    for begun, _, batch in spans:
        others = [b for start, end, b in spans if start < begun < end and b is not batch]
        assert all(partitions(batch).isdisjoint(partitions(other)) for other in others)
    assert [b.batch_id for b in staged] == [b.batch_id for b in stack.batches()], "in their order"
    assert [line for line in said if line.startswith("3 stagers worked: ")] != []


def test_a_backlog_of_one_batch_starts_no_process(new_stack: NewStack) -> None:
    """The run stages it by itself, as without stagers; so do later runs that find little."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    for numbers in (range(50), range(50, 60)):
        stack.send_numbers(numbers, 2)
        worker, _ = talking(stack)
        assert len(carry(worker)) == 1
        assert worker.stagers == {}


def test_a_backlog_of_one_partition_starts_no_process(new_stack: NewStack) -> None:
    """A stager would have it all to do, as the run has."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    stack.send(*(value_of(number) for number in range(200)))
    worker, _ = talking(stack)
    assert len(carry(worker)) == 4
    assert worker.stagers == {}


def test_without_the_setting_there_is_no_stager(new_stack: NewStack) -> None:
    """However much waits."""
    stack = new_stack(batch_max_records=10).make_topic(2)
    stack.send_numbers(range(60), 2)
    worker, _ = talking(stack)
    assert len(carry(worker)) == 6
    assert worker.stagers == {}


def test_near_the_limit_of_what_may_be_staged_one_goes_after_the_other(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being staged counts as if it were there; that alone ends nothing."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    stack.send_numbers(range(200), 2)
    monkeypatch.setattr(
        side_by_side, "why_no_room", lambda *_: NoRoom("full with it", loading_helps=True)
    )
    worker, _ = talking(stack)
    staged = carry(worker)
    assert sum(batch.offsets for batch in staged) == 200
    spans = sorted((a.started_at, a.ended_at or 0) for a in tries(stack, staged))
    assert all(end <= begun for (_, end), (begun, _) in pairwise(spans))


def test_a_stager_that_cannot_start_leaves_it_to_the_run(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, and all is staged."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    sent = stack.send_numbers(range(200), 2)
    monkeypatch.setattr(stager_pool.sys, "executable", "/bin/false")
    worker, said = talking(stack)
    carry(worker)
    assert Counter(stack.account().events) == Counter(sent)
    assert len([line for line in said if "this run stages without stagers" in line]) == 1


def test_stagers_are_waited_for_from_their_start(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not one after the other: several that hang when they begin hold a run up once."""
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 1000\n")
    hangs.chmod(hangs.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(stager_pool.sys, "executable", str(hangs))
    monkeypatch.setattr(stager_pool, "_BIRTH_S", 2.0)
    stack = new_stack(stagers=2, lease_seconds=1, batch_max_records=50).make_topic(2)
    sent = stack.send_numbers(range(100), 2)
    waited: list[float] = []

    class Line(stager_pool.Connection):
        def poll(self, timeout: float | None = 0.0) -> bool:
            waited.append(timeout or 0.0)
            return super().poll(timeout)

    monkeypatch.setattr(stager_pool, "Connection", Line)
    worker, said = talking(stack)
    carry(worker)
    assert Counter(stack.account().events) == Counter(sent)
    assert len(waited) == 2
    assert waited[1] < waited[0] < 2.0, "the second one had begun when the first was waited for"
    assert len([line for line in said if "said nothing for 2 s and was killed" in line]) == 1


def test_a_stager_of_another_version_gets_no_batch(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code on disk was changed under the run: it goes on by itself, with the code it has."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    sent = stack.send_numbers(range(100), 2)
    monkeypatch.setattr(stager_pool, "CODE_VERSION", "of before")
    worker, said = talking(stack)
    staged = carry(worker)
    assert Counter(stack.account().events) == Counter(sent)
    assert [each.error_class for each in tries(stack, staged)] == [None, None]
    (line,) = (line for line in said if "this run stages without stagers" in line)
    assert "and this run of of before: the code was changed" in line


def test_what_a_stager_of_other_code_has_written_goes(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run, in the same attempt, writes no file of that kind."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    stack.send_numbers(range(100), 2)
    written: list[Path] = []

    def result(stager: Stager) -> Made:
        job = stager._job
        assert job is not None
        written.append(stack.lake_file(staged_path(Kind.DUPLICATES, job.batch, job.number)))
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].touch()
        raise StagerUnborn("of other code")

    monkeypatch.setattr(Stager, "result", result)
    worker, _ = talking(stack)
    carry(worker)
    assert [path for path in written if path.exists()] == []
    assert {batch.state for batch in stack.batches()} == {State.COMMITTED}
    assert written


class OfOtherCode:
    """What this process has no name for when it comes to read it."""


@pytest.fixture
def pair(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Stager, stager_pool.Connection]]:
    """A stager, whose process is none, with a job; and the end of the line to say things at."""
    sleep = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setattr(stager_pool.subprocess, "Popen", lambda *_, **__: sleep)
    ends = socket.socketpair()
    theirs = stager_pool.Connection(os.dup(ends[1].fileno()))
    monkeypatch.setattr(stager_pool.socket, "socketpair", lambda: ends)
    try:
        stager = Stager(new_stack().worker(), 1)
        stager.begin(Job(batch_of(Range(0, 0, 5)), 1, cast(Any, None), cast(Any, None)))
        yield stager, theirs
    finally:
        sleep.kill()
        sleep.wait()
        theirs.close()


def test_a_job_that_was_done_meanwhile_does_not_stand_still(
    pair: tuple[Stager, stager_pool.Connection],
) -> None:
    """What it said before waits in the line, while the run waits for another batch."""
    stager, theirs = pair
    for message in (
        Ready(stager_pool.CODE_VERSION),
        Here(stager_pool._STILL_S + 1),
        Here(2.0),
        Here(stager_pool._STILL_S + 1),
        Answer(cast(Any, "made"), None, 5),
    ):
        theirs.send(message)
    assert stager.result() == cast(Any, "made")
    assert stager.peak_bytes == 5


def test_a_job_that_stands_still_at_last_is_ended(
    pair: tuple[Stager, stager_pool.Connection],
) -> None:
    """When that is the last that it said."""
    stager, theirs = pair
    for message in (Ready(stager_pool.CODE_VERSION), Here(2.0), Here(stager_pool._STILL_S + 1)):
        theirs.send(message)
    with pytest.raises(StagerGone, match="has not moved on for 901 s"):
        stager.result()
    assert stager.has_ended


def test_what_a_stager_of_other_code_says_is_no_trouble_of_the_batch(
    pair: tuple[Stager, stager_pool.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run cannot read it, and stages by itself."""
    stager, theirs = pair
    theirs.send(Ready(stager_pool.CODE_VERSION))
    theirs.send(OfOtherCode())
    monkeypatch.delattr(sys.modules[__name__], "OfOtherCode")
    with pytest.raises(StagerUnborn, match="the code was changed meanwhile"):
        stager.result()
    assert stager.has_ended


def test_any_file_of_the_code_is_of_its_version(tmp_path: Path) -> None:
    """Also one that makes no other rows: messages between processes may be others."""
    for folder in ("assets", "orchestration/ledger"):
        (tmp_path / folder).mkdir(parents=True)
    versions = {code_version(tmp_path)}
    for path in ("assets/one.py", "orchestration/ledger/two.py"):
        (tmp_path / path).write_text("1")
        versions.add(code_version(tmp_path))
    (tmp_path / path).write_text("11")
    versions.add(code_version(tmp_path))
    assert len(versions) == 4
    assert code_version(tmp_path) in versions


def test_what_is_sent_to_the_store_moves_a_job(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may take longer than a job may stand still."""
    moved: list[float | None] = []

    def send_for_long(worker: Worker, job: Job, stays: Callable[[], None]) -> None:
        line.moved_at = 0.0
        worker.lake.on_sent()
        moved.append(line.moved_at)

    def serve() -> None:
        with suppress(EOFError):  # the run is done
            stager_module._serve(line)

    monkeypatch.setattr(stager_module, "stage_job", send_for_long)
    monkeypatch.setattr(stager_module._Line, "watch", lambda *_: None)
    ours, theirs = socket.socketpair()
    line = stager_module._Line(theirs.detach())
    with stager_pool.Connection(ours.detach()) as run:
        run.send(Terms(settings(), "run", 1))
        run.send(Job(batch_of(Range(0, 0, 5)), 1, cast(Any, None), cast(Any, None)))
        serving = threading.Thread(target=serve)
        serving.start()
        assert isinstance(run.recv(), Ready)
        assert isinstance(run.recv(), Answer)
    serving.join()
    (at,) = moved
    assert at


def test_an_error_before_a_batch_is_begun_is_its_own(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: the others are staged, and it is tried again."""
    stack = new_stack(batch_max_records=100, stagers=2).make_topic(2)
    stack.send_numbers(range(200), 2)
    window_for = Worker.window_for

    def odd(worker: Worker, batch: Batch) -> Window:
        if partitions(batch) == {0}:
            raise KeyError("odd")
        return window_for(worker, batch)

    held: list[BatchError] = []
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "window_for", odd)
        staged = stage_batches(stack.worker(), held)
    assert [partitions(batch) for batch in staged] == [{1}]
    assert [(type(error), str(error)) for error in held] == [(UnknownTrouble, "KeyError: 'odd'")]
    (other,) = (batch for batch in stack.batches() if batch.state is State.PLANNED)
    assert [each.error_class for each in tries(stack, [other])] == ["UnknownTrouble"]


def test_a_ledger_that_is_away_before_a_batch_is_begun_ends_the_run(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no batch's fault."""
    stack = new_stack(batch_max_records=100, stagers=2).make_topic(2)
    stack.send_numbers(range(200), 2)

    def away(worker: Worker, batch: Batch) -> Window:
        raise OperationalError("SELECT 1", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(Worker, "window_for", away)
    with pytest.raises(OperationalError):
        stage_batches(stack.worker(), [])


def test_where_in_a_stager_an_unknown_error_was_raised_is_said(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lines of its code, as they would be told of an error in the run itself."""
    stack = new_stack(batch_max_records=100, stagers=2).make_topic(2)
    stack.send_numbers(range(200), 2)
    window_for = Worker.window_for

    def odd(worker: Worker, batch: Batch) -> Window:
        return replace(window_for(worker, batch), void=cast(Any, (5,)))

    monkeypatch.setattr(Worker, "window_for", odd)
    worker, said = talking(stack)
    with pytest.raises(UnknownTrouble) as raised:
        stage_batches(worker)
    cause = raised.value.__cause__
    assert cause is not None
    (trace,) = cause.__notes__
    assert "in open_window" in trace
    assert any(line.startswith("in the stager ") and trace in line for line in said)


def test_an_end_that_does_not_come_is_not_waited_for(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that the system holds has the signal, and the run goes on."""
    stack = new_stack(stagers=2).make_topic()
    with StagerPool(stack.worker()) as pool:
        stager = pool.take()
        assert stager is not None

        def held_by_a_disk(timeout: float | None = None) -> int:
            assert timeout is not None, "for ever"
            raise subprocess.TimeoutExpired("stager", timeout)

        with monkeypatch.context() as patch:
            patch.setattr(stager._process, "wait", held_by_a_disk)
            pool.kill(stager)
        await_ended([int(stager.name.rpartition(":")[2])])
        stager._process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGRTMIN + 6])
def test_every_signal_has_a_name(number: int) -> None:
    """Also those that Python has none for."""
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        told = stager_pool._ended_by(process)
    assert told == ("SIGKILL" if number == signal.SIGKILL else f"signal {int(number)}")


def resent(new_stack: NewStack) -> Stack:
    """A stack with 80 events staged, which were sent again, with 80 others."""
    stack = new_stack(batch_max_records=100, stagers=2).make_topic(2)
    stack.send_numbers([*range(80), 0], 2)  # a duplicate, so that each kind has its folder
    carry(stack.worker())
    stack.send_numbers(range(80), 2)
    stack.send_numbers(range(100, 180), 2)
    return stack


def test_stagers_map_copies_of_an_index_that_is_elsewhere(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has brought it, once for all of them: none of them asks the lake for it."""
    stack = resent(new_stack)
    begin = Stager.begin

    def begin_without_the_lake(stager: Stager, job: Job) -> None:
        for path in job.window.paths:
            stack.lake_file(path).unlink(missing_ok=True)
        assert job.copies is not None
        assert Path(job.copies).is_relative_to(stack.settings.home)
        folders.append(job.copies)
        begin(stager, job)

    folders: list[str] = []
    monkeypatch.setattr(Lake, "is_local", False)
    monkeypatch.setattr(Stager, "begin", begin_without_the_lake)
    worker, said = talking(stack)
    staged = stage_batches(worker)
    balance = sum((b.staged.balance for b in staged if b.staged), Balance())
    assert balance == Balance(ok=80, duplicate=80)
    assert [line for line in said if "is staged by the run itself" in line] == []
    assert len(folders) == 2
    (folder,) = set(folders)
    assert not Path(folder).exists()


def test_without_room_for_copies_the_run_stages_by_itself(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once; what was sent again is found."""
    stack = resent(new_stack)
    monkeypatch.setattr(Lake, "is_local", False)
    worker, said = talking(stack)
    worker.settings = stack.settings.model_copy(update={"lake_min_free_bytes": 1 << 60})
    staged = stage_batches(worker)
    balance = sum((b.staged.balance for b in staged if b.staged), Balance())
    assert balance == Balance(ok=80, duplicate=80)
    assert len([line for line in said if "this run stages without stagers" in line]) == 1


def test_an_index_that_cannot_be_read_is_made_anew_by_the_run(new_stack: NewStack) -> None:
    """And what it had is found: each event that is sent again is a duplicate."""
    stack = new_stack(batch_max_records=100, stagers=2).make_topic(2)
    stack.send_numbers(range(80), 2)
    (first,) = carry(stack.worker())
    (file,) = live_key_files(stack.ledger, first.arrival_date, first.arrival_date)
    stack.lake_file(file.path).write_bytes(b"no key file")
    stack.send_numbers(range(80), 2)
    stack.send_numbers(range(100, 180), 2)
    worker, said = talking(stack)
    staged = carry(worker)
    balance = sum((b.staged.balance for b in staged if b.staged), Balance())
    assert balance == Balance(ok=80, duplicate=80)
    assert [line for line in said if "is staged by the run itself" in line] != []


def test_an_interrupted_run_leaves_no_process(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terminate raises in it: its stagers end, their attempts say why, the next one goes on."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    sent = stack.send_numbers(range(200), 2)

    def interrupted(stager: Stager) -> None:
        raise KeyboardInterrupt

    worker, _ = talking(stack)
    with monkeypatch.context() as patch:
        patch.setattr(Stager, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage_batches(worker)
    pids = [int(name.rpartition(":")[2]) for name in worker.stagers]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    classes = [attempt.error_class for attempt in tries(stack, stack.batches())]
    assert classes == ["KeyboardInterrupt", "StagingStopped"]
    carry(stack.worker())
    assert Counter(stack.account().events) == Counter(sent)


@pytest.mark.parametrize(
    "error",
    [
        Gap("gone", [Range(0, 1, 5)]),
        KafkaAway("away", -195),
        KafkaRefused("refused", 87),
        KeyFileUnreadable("keys/a.arrow", "cut off"),
        LeaseLost("another one"),
        StagerGone("killed"),
        OSError(28, "No space left on device"),
        ValueError("odd"),
        OperationalError("SELECT 1", {}, sqlite3.OperationalError("database is locked")),
    ],
)
def test_an_error_arrives_as_it_was_raised(error: Exception) -> None:
    """With its class, its text and all that is known of it."""
    answer = answer_of(None, error, 0)
    with pytest.raises(type(error)) as raised:
        pickle.loads(pickle.dumps(answer)).result()
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    for name in ("missing", "code", "remedy"):
        assert getattr(raised.value, name, None) == getattr(error, name, None)


def test_an_error_that_cannot_travel_arrives_as_its_name() -> None:
    """Nothing of it is lost that a person would read."""

    class OfThisProcessOnly(Exception):
        pass

    with pytest.raises(RuntimeError, match="OfThisProcessOnly: what"):
        pickle.loads(pickle.dumps(answer_of(None, OfThisProcessOnly("what"), 0))).result()


def talking(stack: Stack) -> tuple[Worker, list[str]]:
    """A worker, and what it says."""
    said: list[str] = []
    return Worker(stack.settings, stack.ledger, "run", say=said.append), said


def carry(worker: Worker) -> list[Batch]:
    """One micro-batch; gives what it staged."""
    staged = stage_batches(worker, loads_early=True)
    load_batches(worker)
    load_dead_letters(worker)
    return staged


def tries(stack: Stack, batches: list[Batch]) -> list[Attempt]:
    """The attempts at staging them."""
    return [
        attempt
        for batch in batches
        for attempt in attempts_of(stack.ledger, batch.batch_id)
        if attempt.stage == "stage"
    ]


def partitions(batch: Batch) -> set[int]:
    """Those of its ranges."""
    return {range_.partition for range_ in batch.ranges}
