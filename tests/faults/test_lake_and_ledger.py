"""The lake or the ledger is not what it was: no room, damaged or lost files, an older backup."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from assets.pipeline import sources, staging
from assets.pipeline.audit import unbalanced
from assets.pipeline.batch import Balance, Kind, Range, State
from assets.pipeline.errors import BatchError, LakeTrouble, LoadingPaused
from assets.pipeline.loading import load_batches
from assets.pipeline.waiting import accept_gap, refuse_gap, retry_batch
from assets.pipeline.worker import Worker
from orchestration.ledger.backoffs import backoffs_now
from orchestration.ledger.gaps import all_gaps
from tests.faults.conftest import Scene
from tests.faults.run_worker import AGAIN, STOPPED
from tests.records import delete_before, value_of
from tests.stack import Stack, cannot_be_read

NewScene = Callable[..., Scene]


@pytest.mark.matrix("disk full while staging")
def test_the_disk_is_full_while_staging(new_scene: NewScene) -> None:
    """The worker leaves no part of a file behind, and the next one with room stages it all."""
    scene = new_scene(sound=60)
    dice = np.random.default_rng(1)
    bulky = [
        value_of(1_000 + n, b'{"x":"%s"}' % dice.bytes(60_000).hex().encode()) for n in range(60)
    ]
    scene.stored += scene.stack.send(*bulky)
    scene.delivered += Balance(ok=len(bulky))
    assert scene.work(file_bytes=1_500_000) == AGAIN
    (batch,) = scene.stack.batches()
    assert batch.state is State.PLANNED
    assert list(scene.stack.lake_file("events").rglob("*.p*")) == []
    assert scene.work() == 0
    scene.prove()


def staged_file(stack: Stack, kind: Kind) -> Path:
    """The file of the one batch."""
    (batch,) = stack.batches()
    assert batch.staged is not None
    file = batch.staged.file(kind)
    assert file is not None
    return stack.lake_file(file.path)


def flip_a_bit(path: Path) -> None:
    """As a bad disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    """As a copy that was broken off."""
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.matrix("staged file damaged or deleted, Kafka has it")
@pytest.mark.parametrize("harm", [flip_a_bit, cut_short, Path.unlink])
def test_a_staged_file_is_harmed_before_it_is_loaded(
    new_scene: NewScene, harm: Callable[[Path], None]
) -> None:
    """Nothing of it is loaded: the next run stages the batch again from Kafka, and loads it."""
    scene = new_scene()
    scene.kill_at("after-register")
    harm(staged_file(scene.stack, Kind.EVENTS))
    assert scene.work() == STOPPED
    assert scene.stack.rows("SELECT count() FROM {database}.events") == [(0,)]
    scene.kill_at("after-send")
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("a file of the lake cannot be read", "the lake is away")
def test_a_staged_file_cannot_be_read(new_scene: NewScene) -> None:
    """One file's trouble is its batch's alone; a second one's in a row is the whole lake's."""
    scene = new_scene(batch_max_records=80, load_attempts=2)
    stack = scene.stack
    staging.stage_batches(stack.worker())
    paths = [
        stack.lake_file(file.path)
        for batch in stack.batches()
        if batch.staged and (file := batch.staged.file(Kind.EVENTS))
    ]
    whole = [cannot_be_read(path) for path in paths[:2]]

    def load() -> list[type[BatchError]]:
        held: list[BatchError] = []
        load_batches(
            Worker(stack.settings, stack.ledger, "run", lambda _: None, insists=True), held
        )
        return [type(one) for one in held]

    assert load() == [LakeTrouble, LakeTrouble, LoadingPaused]
    first, second, *others = [batch.state for batch in stack.batches()]
    assert (first, second, set(others)) == (State.LOADING, State.LOADING, {State.STAGED})
    whole[1].replace(paths[1])
    assert load() == [LakeTrouble]
    first, *others = [batch.state for batch in stack.batches()]
    assert (first, set(others)) == (State.LOADING, {State.COMMITTED})
    assert set(backoffs_now(stack.ledger)) == {f"batch/{stack.batches()[0].batch_id}/load"}
    whole[0].replace(paths[0])
    assert load() == []
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("staged file gone, Kafka has nothing")
@pytest.mark.parametrize("harm", [flip_a_bit, Path.unlink])
def test_a_staged_file_was_the_only_copy(new_scene: NewScene, harm: Callable[[Path], None]) -> None:
    """The batch waits for a person, and is whole when the file is back; later ones are loaded."""
    scene = new_scene()
    scene.kill_at("after-register")
    path = staged_file(scene.stack, Kind.EVENTS)
    whole = path.read_bytes()
    harm(path)
    highs = scene.stack.topic.highs(scene.partitions())
    delete_before(scene.stack.kafka, scene.stack.settings.topic, highs)
    scene.send_more(20)
    assert scene.work() == STOPPED
    assert scene.work() == 0
    waiting, later = scene.stack.batches()
    assert (waiting.state, later.state) == (State.GAP, State.COMMITTED)
    assert "Nor can it be staged again: Kafka's retention took records" in waiting.note
    path.write_bytes(whole)
    retry_batch(scene.stack.worker(), waiting.batch_id)
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("staged file lost for good")
@pytest.mark.parametrize("kind", [Kind.EVENTS, Kind.DEAD_LETTERS])
def test_a_staged_file_is_lost_for_good(new_scene: NewScene, kind: Kind) -> None:
    """A person accepts the loss: the rest goes on, the balance closes, and resends are welcome."""
    scene = new_scene()
    stack, topic = scene.stack, scene.stack.settings.topic
    scene.kill_at("after-register")
    before = stack.batches()[0].staged
    assert before is not None
    staged_file(stack, kind).unlink()
    delete_before(stack.kafka, topic, stack.topic.highs(scene.partitions()))
    assert scene.work() == STOPPED
    (gap,) = all_gaps(stack.ledger, topic)
    rows = before.balance.ok if kind is Kind.EVENTS else before.balance.rejected
    assert (gap.cause, gap.records, gap.decision) == (kind, rows, None)
    with pytest.raises(BatchError, match="there is no gap"):
        accept_gap(stack.worker(), gap.gap_id + 1, "the wrong one")
    refused = refuse_gap(stack.worker(), gap.gap_id, "look for a backup first")
    assert (refused.decision, stack.batches()[0].state) == ("refused", State.FAILED)
    retry_batch(stack.worker(), gap.batch_id)
    assert scene.work() == STOPPED
    again = all_gaps(stack.ledger, topic)[-1]
    accept_gap(stack.worker(), again.gap_id, "the disk is gone")
    assert scene.work() == 0
    (batch,) = stack.batches()
    assert batch.staged is not None
    assert batch.state is State.COMMITTED
    assert batch.staged.balance.lost == rows
    assert batch.staged.balance.offsets == batch.offsets
    assert unbalanced([batch]) == []
    found = stack.account()
    assert len(found.events) == (0 if kind is Kind.EVENTS else before.balance.ok)
    assert len(found.dead_letters) == (0 if kind is Kind.DEAD_LETTERS else 9)
    assert [each.why for each in all_gaps(stack.ledger, topic)] == [
        "look for a backup first",
        "the disk is gone",
    ]
    if kind is Kind.EVENTS:
        resent = stack.send_numbers(range(5))
        assert scene.work() == 0
        assert sorted(stack.account().events) == sorted(resent)


@pytest.mark.matrix("staged file lost for good")
def test_what_is_loaded_again_after_an_accepted_loss(new_scene: NewScene) -> None:
    """ClickHouse has lost the rows, and remembers their insert: they come back all the same."""
    scene = new_scene()
    stack, topic = scene.stack, scene.stack.settings.topic
    scene.kill_at("after-commit")
    staged_file(stack, Kind.DEAD_LETTERS).unlink()
    assert scene.work() == STOPPED
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE 1 SETTINGS mutations_sync = 2"
    )
    (gap,) = all_gaps(stack.ledger, topic)
    accept_gap(stack.worker(), gap.gap_id, "the disk is gone")
    assert scene.work() == 0
    (batch,) = stack.batches()
    assert batch.state is State.COMMITTED
    assert batch.staged is not None
    assert len(stack.account().events) == batch.staged.balance.ok


def test_an_error_without_a_name_stops_no_other_batch(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody expected of one batch is tried a few times, then a person is asked."""
    stack = new_scene(unknown_error_tries=2).stack
    odd = stack.plan(100)
    assert odd is not None

    def refuse(topic: object, topic_id: str, ranges: tuple[Range, ...]) -> None:
        if ranges == odd.ranges:
            raise BatchError("nobody has thought of this")

    monkeypatch.setattr(sources, "check_readable", refuse)
    for state in (State.PLANNED, State.FAILED):
        held: list[BatchError] = []
        worker = Worker(stack.settings, stack.ledger, "run", lambda _: None, insists=True)
        staging.stage_batches(worker, held)
        assert [str(one) for one in held] == ["nobody has thought of this"]
        assert stack.batches()[0].state is state
    assert stack.batches()[0].note == "nobody has thought of this"
    assert [batch.state for batch in stack.batches()[1:]] == [State.STAGED]


def copied(source: Path, target: Path) -> None:
    """A backup of a SQLite file, or its restoration."""
    with sqlite3.connect(source) as one, sqlite3.connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


@pytest.mark.matrix("ledger restored from an older backup")
@pytest.mark.parametrize("point", ["after-send", "after-loaded", ""])
def test_the_ledger_is_restored_from_an_older_backup(
    new_scene: NewScene, tmp_path: Path, point: str
) -> None:
    """However little of a batch had been done since, its rows are not loaded under another name."""
    ledger = tmp_path / "ledger.db"
    scene = new_scene(ledger_url=f"sqlite:///{ledger}")
    assert scene.work() == 0
    older, newer = tmp_path / "older.db", tmp_path / "newer.db"
    copied(ledger, older)
    scene.send_more(40)
    if point:
        scene.kill_at(point)
    else:
        assert scene.work() == 0
    scene.stack.ledger.dispose()
    copied(ledger, newer)
    copied(older, ledger)
    scene.send_more(30)
    places = scene.stack.account().places
    assert scene.work() == STOPPED
    assert scene.stack.account().places == places
    assert len(scene.stack.batches()) == 1
    copied(newer, ledger)
    assert scene.work() == 0
    scene.prove()
