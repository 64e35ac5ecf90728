"""Held batches: too much was rejected, so nothing is published until a person has looked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from assets.pipeline import registering as registering_module
from assets.pipeline import validate
from assets.pipeline.batch import Balance, Batch, Kind, Staged, State
from assets.pipeline.errors import BatchError
from assets.pipeline.failpoints import VARIABLE
from assets.pipeline.hold import reason_to_hold
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.waiting import release_batch, restage_batch, retry_batch
from orchestration.ledger.attempts import attempts_of
from tests.records import delete_before, too_large, uuid_of, value_of, value_with
from tests.stack import ROOT, Stack

NewStack = Callable[..., Stack]

LIMITS = {"hold_over_percent": 20.0, "hold_over_records": 5}


def newer(number: int) -> bytes:
    """A record in a layout that the code does not know yet."""
    return value_with(number, v=3)


@pytest.fixture
def held(new_stack: NewStack) -> tuple[Stack, Batch]:
    """A stack whose one batch is held: 10 records are fine, 10 are of a newer layout."""
    stack = new_stack(**LIMITS).make_topic()
    stack.send(*map(value_of, range(10)), *map(newer, range(10, 20)))
    [batch] = stack.run()
    assert batch.state is State.HELD
    return stack, batch


@pytest.mark.parametrize(
    ("delivered", "reasons", "is_held"),
    [
        (100, {}, False),
        (100, {"not_json": 20}, False),  # as many percent as may be
        (100, {"not_json": 21}, True),
        (100, {"not_json": 11, "not_utf8": 10}, True),  # reasons count together
        (20, {"not_json": 10}, False),  # half of it, but no more records than may be
        (20, {"not_json": 11}, True),
        (1_000, {"not_json": 150}, False),  # many, but a small part
        (100, {"unknown_project": 99}, False),  # what a client can make happen
        (100, {"unknown_project": 40, "too_large": 40, "not_json": 20}, False),
        (100, {"unknown_project": 40, "not_json": 21}, True),
        (0, {}, False),
    ],
)
def test_both_limits_must_be_passed(delivered: int, reasons: dict[str, int], is_held: bool) -> None:
    """Held beyond 20 percent and 10 records of what no client can cause; with its reasons."""
    rejected = sum(reasons.values())
    staged = Staged((), {0: Balance(delivered - rejected, rejected)}, {}, 0, reasons)
    why = reason_to_hold("b4tc4", staged, 20.0, 10)
    assert bool(why) is is_held
    if is_held:
        assert "tidemark release b4tc4" in why
        assert "tidemark retry b4tc4 --restage" in why
        assert f"{reasons['not_json']:,} not_json" in why


def test_nothing_of_a_held_batch_is_published_and_others_go_on(
    held: tuple[Stack, Batch],
) -> None:
    """Neither events nor dead letters; what comes later is loaded, and the mirror says held."""
    stack, batch = held
    assert batch.staged is not None
    assert batch.staged.balance == Balance(ok=10, rejected=10)
    assert batch.staged.reasons == {"unknown_version": 10}
    assert stack.account().places == {}
    later = stack.send_numbers(range(100, 110))
    first, second = stack.run()
    assert (first.state, second.state) == (State.HELD, State.COMMITTED)
    assert stack.account().places == dict.fromkeys(later, 1)
    assert stack.rows(
        "SELECT state, ok, rejected FROM {database}.batches FINAL WHERE batch_id = {id:String}",
        id=batch.batch_id,
    ) == [("held", 10, 10)]


def test_a_released_batch_is_loaded_as_it_was_staged(held: tuple[Stack, Batch]) -> None:
    """Events and dead letters, from the files that were staged then; it is not held again."""
    stack, batch = held
    released = release_batch(stack.worker(), batch.batch_id)
    assert (released.state, released.note, released.staged) == (State.STAGED, "", batch.staged)
    [done] = stack.run()
    assert done.state is State.COMMITTED
    account = stack.account()
    assert sorted(account.events) == [(0, offset) for offset in range(10)]
    assert sorted(account.dead_letters) == [(0, offset) for offset in range(10, 20)]
    with pytest.raises(BatchError, match="is committed: only a held batch can be released"):
        release_batch(stack.worker(), batch.batch_id)


def test_code_that_was_mended_stages_it_again(
    held: tuple[Stack, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With code that knows the newer layout, its records are events, and the rest is rejected."""
    stack, batch = held
    monkeypatch.setattr(validate, "RECORD_VERSION", 3)
    stack.send(*map(newer, range(100, 103)))
    with pytest.raises(BatchError, match=r"is held.*tidemark release.*--restage"):
        retry_batch(stack.worker(), batch.batch_id)
    again = restage_batch(stack.worker(), batch.batch_id)
    assert again.staged is not None
    assert again.staged.balance == batch.staged.balance  # type: ignore[union-attr]
    assert again.state is State.HELD  # the other half is unknown now
    release_batch(stack.worker(), batch.batch_id)
    stack.run()
    account = stack.account()
    assert sorted(account.events) == [(0, offset) for offset in range(10, 23)]
    assert sorted(account.dead_letters) == [(0, offset) for offset in range(10)]
    assert lake_files(stack, batch) == registered(stack)


def test_events_that_are_none_any_more_can_be_sent_again(
    held: tuple[Stack, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index forgets what a batch held before it was staged again, and only that."""
    stack, batch = held
    monkeypatch.setattr(validate, "RECORD_VERSION", 3)
    restage_batch(stack.worker(), batch.batch_id)
    release_batch(stack.worker(), batch.batch_id)
    stack.send(*map(newer, range(20)))
    newest = stack.run()[-1]
    assert newest.staged is not None
    assert newest.staged.balance == Balance(ok=10, duplicate=10)


def test_a_mended_batch_is_loaded_by_the_next_run(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When staging again finds nothing to hold, nobody has to release it."""
    stack = new_stack(**LIMITS).make_topic()
    sent = stack.send(*map(newer, range(12)))
    [batch] = stack.run()
    assert batch.state is State.HELD
    monkeypatch.setattr(validate, "RECORD_VERSION", 3)
    assert restage_batch(stack.worker(), batch.batch_id).state is State.STAGED
    stack.run()
    assert sorted(stack.account().events) == sent
    assert stack.account().dead_letters == []


def test_records_that_kafka_has_lost_cannot_be_staged_again(held: tuple[Stack, Batch]) -> None:
    """It stays held as it was, with its files, and can still be released."""
    stack, batch = held
    delete_before(stack.kafka, stack.settings.topic, {0: 3})
    with pytest.raises(BatchError, match=r"0:\[0,3\).*stays held.*tidemark release"):
        restage_batch(stack.worker(), batch.batch_id)
    [still] = stack.batches()
    assert still == batch
    assert still.staged == batch.staged
    release_batch(stack.worker(), batch.batch_id)
    stack.run()
    assert len(stack.account().places) == 20


def test_what_clients_send_holds_nothing_back(new_stack: NewStack) -> None:
    """Events of tokens that no project has, and too large ones, are dead letters as ever."""
    stack = new_stack(**LIMITS).make_topic()
    sent = stack.send(
        value_of(0),
        *(value_of(n, project_id=0) for n in range(1, 20)),
        *(too_large(n) for n in range(20, 40)),
    )
    [batch] = stack.run()
    assert batch.state is State.COMMITTED
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_a_killed_restage_leaves_no_duplicate_of_nothing(
    held: tuple[Stack, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dying once the new files are registered, it leaves the index to the next worker to mend."""
    stack, batch = held

    def die(name: str) -> None:
        if name == "after-register":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(validate, "RECORD_VERSION", 3)
        patched.setattr(registering_module, "failpoint", die)
        with pytest.raises(KeyboardInterrupt):
            restage_batch(stack.worker(), batch.batch_id)
    sent = stack.send(*map(value_of, range(10)))  # what it has rejected now, sent once more
    newest = stack.run()[-1]
    assert newest.staged is not None
    assert newest.staged.balance == Balance(ok=10)
    assert sorted(stack.account().events) == sent


@pytest.mark.parametrize("point", ["after-stage", "after-register"])
@pytest.mark.parametrize("then", ["release", "restage"])
def test_a_killed_restage_loses_and_doubles_nothing(
    held: tuple[Stack, Batch], point: str, then: str
) -> None:
    """Killed before or after the new files are registered: what is registered is what is loaded,
    and no other file of the batch is left in the lake."""
    stack, batch = held
    assert restage_in_a_process(stack, batch, point) == -signal.SIGKILL
    if then == "restage":
        assert restage_in_a_process(stack, batch) == 1  # held again
    release_batch(stack.worker(), batch.batch_id)
    load_batches(stack.worker())
    load_dead_letters(stack.worker())
    assert len(stack.account().events) == 10
    assert len(stack.account().dead_letters) == 10
    assert stack.account().places == dict.fromkeys(((0, offset) for offset in range(20)), 1)
    assert lake_files(stack, batch) == registered(stack)
    tries = attempts_of(stack.ledger, batch.batch_id)
    assert [one.number for one in tries if one.stage == "stage"] == list(
        range(1, 4 if then == "restage" else 3)
    )


def test_a_resend_of_what_is_held_is_a_duplicate(held: tuple[Stack, Batch]) -> None:
    """Held events will be published one day, so the same uuid is not stored a second time."""
    stack, batch = held
    stack.send(value_of(3))
    newest = stack.run()[-1]
    assert newest.staged is not None
    assert newest.staged.balance == Balance(duplicate=1)
    release_batch(stack.worker(), batch.batch_id)
    stack.run()
    assert stack.rows(
        "SELECT count() FROM {database}.events WHERE uuid = {id:UUID}", id=uuid_of(3)
    ) == [(1,)]


def restage_in_a_process(stack: Stack, batch: Batch, point: str = "") -> int:
    """`tidemark retry --restage`, which kills itself at the point; gives its exit code."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from orchestration.cli import main; main()",
            *("retry", batch.batch_id, "--restage"),
        ],
        cwd=ROOT,
        env={**os.environ, **stack.settings.environment(), VARIABLE: point},
        check=False,
    ).returncode


def lake_files(stack: Stack, batch: Batch) -> set[str]:
    """The names of the files of events and dead letters that lie in the lake for a batch."""
    root = Path(stack.settings.lake)
    return {
        str(path.relative_to(root))
        for kind in (Kind.EVENTS, Kind.DEAD_LETTERS)
        for path in (root / kind).rglob("*")
        if path.name.startswith(batch.batch_id)
    }


def registered(stack: Stack) -> set[str]:
    """The files of the first batch that the ledger names."""
    batch = stack.batches()[0]
    assert batch.staged is not None
    return {file.path for file in batch.staged.files if file.kind is not Kind.DUPLICATES}
