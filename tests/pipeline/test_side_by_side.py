"""Side by side: who stages which partitions, and when the run does it all by itself."""

from __future__ import annotations

import os
import pickle
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from sqlalchemy.exc import OperationalError

from assets.pipeline import side_by_side, stager_pool
from assets.pipeline.batch import Balance, Batch, Range, State
from assets.pipeline.errors import (
    Gap,
    KafkaAway,
    KafkaRefused,
    KeyFileUnreadable,
    LeaseLost,
    StagerGone,
)
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.room import NoRoom
from assets.pipeline.side_by_side import choose_lanes
from assets.pipeline.stager import Answer, packed
from assets.pipeline.stager_pool import Stager, StagerPool
from assets.pipeline.staging import stage_batches
from assets.pipeline.worker import Worker
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.keys import live_key_files
from tests.pids import await_ended
from tests.records import value_of
from tests.stack import Stack

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
    assert [line for line in said if "this run stages without stagers" in line] != []


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
    answer = Answer(None, packed(error), 0)
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
        pickle.loads(pickle.dumps(Answer(None, packed(OfThisProcessOnly("what")), 0))).result()


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
