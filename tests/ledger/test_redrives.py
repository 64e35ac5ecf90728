"""Redrives in the ledger: no letter twice, outcomes with the files, balances with the proof."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from assets.pipeline.batch import Balance, Batch, Kind, Range, Staged, State
from assets.pipeline.errors import BatchError, LeaseLost, PlanConflict
from assets.pipeline.redrive import _as_redrive
from orchestration.ledger import redrives
from orchestration.ledger.batches import (
    give_up,
    planned_ends,
    read_batch,
    record_plan,
    register_staged,
    set_state,
    stage_again,
)
from orchestration.ledger.leases import Lease, held_lease
from orchestration.ledger.let_go import batches_to_judge, has_let_go, let_go_of_date
from orchestration.ledger.redrives import (
    UNDER_WAY,
    Letter,
    Outcome,
    Past,
    Place,
    letters_of,
    past_of,
    record_redrive,
    register_outcomes,
    results_of,
    tries_of,
)
from tests.capture_api.conftest import until
from tests.staging import DAY, batch_of

OLD = Staged((), {0: Balance(ok=7, rejected=3), 1: Balance(rejected=2)}, {}, 1)
EVENT, AGAIN = (Outcome.EVENT, ""), (Outcome.REJECTED, "not_utf8")


@pytest.fixture
def lease(ledger: Engine) -> Iterator[Lease]:
    """The lease under which everything is written."""
    with held_lease(ledger, "topic/events", 60) as lease:
        yield lease


@pytest.fixture
def old(ledger: Engine, lease: Lease) -> Batch:
    """A batch that is loaded, of which five records were rejected."""
    batch = batch_of(Range(0, 0, 10), Range(1, 0, 2))
    record_plan(ledger, lease, batch)
    register_staged(ledger, lease, batch.batch_id, OLD, None, "1")
    set_state(ledger, lease, batch.batch_id, State.LOADING)
    set_state(ledger, lease, batch.batch_id, State.LOADED)
    return read_batch(ledger, batch.batch_id)


@pytest.fixture
def plan(ledger: Engine, lease: Lease, old: Batch) -> Callable[..., Batch]:
    """Plans a redrive of letters of the old batch."""

    def plan(*places: tuple[int, int], number: int = 1) -> Batch:
        letters = [
            Letter(Place(*place), old.batch_id, "not_json", number, 7) for place in sorted(places)
        ]
        batch = _as_redrive(old, letters, "run")
        record_redrive(ledger, lease, batch, letters, "{}")
        assert letters_of(ledger, batch.batch_id) == letters
        return batch

    return plan


def stage(
    ledger: Engine, lease: Lease, batch: Batch, outcomes: dict[Place, tuple[Outcome, str]]
) -> None:
    """Register a redrive as staged, with these outcomes."""
    register_staged(
        ledger,
        lease,
        batch.batch_id,
        Staged((), {}, {}, 0),
        None,
        "1",
        also=lambda connection: register_outcomes(connection, batch.batch_id, outcomes),
    )


def test_a_redrive_moves_no_lane_and_has_no_range(
    ledger: Engine, plan: Callable[..., Batch]
) -> None:
    """Its letters are what it carries; the lanes stay where they are."""
    before = planned_ends(ledger, "cluster", "topic-id")
    batch = plan((0, 3), (1, 0))
    assert planned_ends(ledger, "cluster", "topic-id") == before
    found = read_batch(ledger, batch.batch_id)
    assert (found, found.letters, found.ranges) == (batch, 2, ())


def test_a_letter_is_in_one_redrive_at_a_time(ledger: Engine, plan: Callable[..., Batch]) -> None:
    """What is under way is not planned again, not even among others that are free."""
    plan((0, 3), (0, 4))
    with pytest.raises(PlanConflict, match="1 of the dead letters are redriven by now"):
        plan((0, 4), (0, 5))
    places = [Place(0, 3), Place(0, 5)]
    assert past_of(ledger, "topic-id", places) == {Place(0, 3): Past(0, UNDER_WAY, 1)}
    assert past_of(ledger, "another-topic", places) == {}
    plan((0, 5))


def test_the_old_balance_changes_with_the_proof(
    ledger: Engine, lease: Lease, old: Batch, plan: Callable[..., Batch]
) -> None:
    """Not when it is staged but when it is loaded, and back when it turns out to be suspect."""

    def redriven() -> list[int]:
        staged = read_batch(ledger, old.batch_id).staged
        assert staged is not None
        assert staged.balance.offsets == old.offsets
        return [balance.redriven for _, balance in sorted(staged.balances.items())]

    batch = plan((0, 3), (0, 4), (1, 0))
    outcomes = {Place(0, 3): EVENT, Place(0, 4): AGAIN, Place(1, 0): EVENT}
    stage(ledger, lease, batch, outcomes)
    staged = read_batch(ledger, batch.batch_id).staged
    assert staged is not None
    assert staged.balances == {0: Balance(ok=1), 1: Balance(ok=1)}
    assert redriven() == [0, 0]
    set_state(ledger, lease, batch.batch_id, State.LOADING)
    set_state(ledger, lease, batch.batch_id, State.LOADED)
    assert redriven() == [1, 1]
    set_state(ledger, lease, batch.batch_id, State.COMMITTED)
    assert redriven() == [1, 1]
    set_state(ledger, lease, batch.batch_id, State.SUSPECT)
    assert redriven() == [0, 0]
    assert results_of(ledger, [batch.batch_id]) == {
        ("not_json", Outcome.EVENT, ""): 2,
        ("not_json", Outcome.REJECTED, "not_utf8"): 1,
    }


def test_a_letter_that_fails_can_be_tried_again(
    ledger: Engine, lease: Lease, plan: Callable[..., Batch]
) -> None:
    """Each failed try counts; an event or a duplicate settles it for good."""
    failed, duplicate = Place(0, 3), Place(0, 4)
    first = plan(failed, duplicate)
    stage(ledger, lease, first, {failed: AGAIN, duplicate: (Outcome.DUPLICATE, "")})
    assert past_of(ledger, "topic-id", [failed, duplicate]) == {
        failed: Past(1, last=1),
        duplicate: Past(0, "duplicate", 1),
    }
    with pytest.raises(PlanConflict):
        plan(duplicate, number=2)
    second = plan(failed, number=2)
    assert first.batch_id != second.batch_id
    stage(ledger, lease, second, {failed: EVENT})
    assert past_of(ledger, "topic-id", [failed]) == {failed: Past(1, "event", 2)}
    assert [(one.number, one.outcome) for one in tries_of(ledger, "events", *failed)] == [
        (1, Outcome.REJECTED),
        (2, Outcome.EVENT),
    ]


def test_outcomes_are_registered_for_all_letters_or_none(
    ledger: Engine, lease: Lease, plan: Callable[..., Batch]
) -> None:
    """One that is missing, or one too many, refuses the whole registration."""
    batch = plan((0, 3), (0, 4))
    for outcomes in (
        {Place(0, 3): EVENT},
        {Place(0, 3): EVENT, Place(0, 4): EVENT, Place(0, 5): EVENT},
    ):
        with pytest.raises(BatchError, match="carries 2 dead letters"):
            stage(ledger, lease, batch, outcomes)
        assert read_batch(ledger, batch.batch_id).state is State.PLANNED
    assert results_of(ledger, [batch.batch_id]) == {}


def test_a_redrive_that_is_staged_again_forgets_its_outcomes(
    ledger: Engine, lease: Lease, plan: Callable[..., Batch]
) -> None:
    """Until it is staged once more, its letters are under way."""
    place = Place(0, 3)
    batch = plan(place)
    stage(ledger, lease, batch, {place: AGAIN})
    set_state(ledger, lease, batch.batch_id, State.LOADING)
    stage_again(ledger, lease, batch.batch_id, "its file is gone")
    assert past_of(ledger, "topic-id", [place]) == {place: Past(0, UNDER_WAY, 1)}
    stage(ledger, lease, batch, {place: EVENT})
    assert past_of(ledger, "topic-id", [place]) == {place: Past(0, "event", 1)}


def test_letters_of_a_redrive_that_was_given_up_are_free(
    ledger: Engine, lease: Lease, plan: Callable[..., Batch]
) -> None:
    """Nothing of its outcomes is left, failed tries do not count, the next try has its own name."""
    failed, event = Place(0, 3), Place(0, 4)
    first = plan(failed, event)
    stage(ledger, lease, first, {failed: AGAIN, event: EVENT})
    set_state(ledger, lease, first.batch_id, State.LOADING)
    set_state(ledger, lease, first.batch_id, State.SUSPECT)
    give_up(ledger, lease, first.batch_id, "given up")
    found = read_batch(ledger, first.batch_id)
    assert (found.state, found.staged, found.note) == (State.SUPERSEDED, None, "given up")
    assert past_of(ledger, "topic-id", [failed, event]) == {
        failed: Past(last=1),
        event: Past(last=1),
    }
    assert results_of(ledger, [first.batch_id]) == {}
    second = plan(failed, event, number=2)
    assert second.batch_id != first.batch_id
    assert [(one.number, one.given_up) for one in tries_of(ledger, "events", *event)] == [
        (1, True),
        (2, False),
    ]


def test_a_late_worker_plans_nothing(ledger: Engine, lease: Lease, old: Batch) -> None:
    """With a lease that was taken over, no redrive is stored."""
    letters = [Letter(Place(0, 3), old.batch_id, "not_json", 1, None)]
    batch = _as_redrive(old, letters, "run")
    with pytest.raises(LeaseLost):
        record_redrive(ledger, Lease(lease.name, lease.fence - 1), batch, letters, "{}")
    assert past_of(ledger, "topic-id", [Place(0, 3)]) == {}


def test_letters_of_a_redrive_that_is_being_planned_are_not_let_go(
    ledger: Engine,
    old: Batch,
    plan: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Housekeeping waits for the plan's transaction, and then sees what it has added."""
    judged = batches_to_judge(ledger, DAY, "events")
    assert [batch.batch_id for batch in judged] == [old.batch_id]
    found: list[bool] = []

    def let_go() -> None:
        with held_lease(ledger, "rebuild/events", 60) as own:
            kinds = (Kind.DEAD_LETTERS,)
            found.append(let_go_of_date(ledger, own, DAY, kinds, judged, "events"))

    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    housekeeping = threading.Thread(target=let_go)

    def meanwhile(connection: Connection, olds: Any, kind: Kind) -> bool:
        housekeeping.start()
        if ledger.dialect.name == "postgresql":
            until(lambda: connection.exec_driver_sql(waiting).scalar_one() >= 1, "it waits")
        return has_let_go(connection, olds, kind)

    monkeypatch.setattr(redrives, "has_let_go", meanwhile)
    plan((0, 3))
    housekeeping.join(60)
    assert found == [False]
