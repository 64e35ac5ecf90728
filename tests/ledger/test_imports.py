"""Imports in the ledger: begun once, found among the batches of their deployment, given a turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from sqlalchemy import Engine, update

from assets.pipeline.batch import Batch, Range, State, batch_id
from assets.pipeline.errors import BatchError, LeaseLost
from orchestration.ledger import batches
from orchestration.ledger.imports import (
    CLUSTER,
    Import,
    all_imports,
    begin_import,
    discard,
    import_named,
    times_discarded,
)
from orchestration.ledger.leases import (
    Lease,
    ask_for_turn,
    have_same_holder,
    held_lease,
    is_held,
    is_turn_asked_for,
    take_turn,
)
from orchestration.ledger.projects import create_project
from orchestration.ledger.tables import batches as batches_table
from orchestration.ledger.tables import leases
from tests.staging import DAY, batch_of


@pytest.fixture
def begin(ledger: Engine) -> Callable[..., Import]:
    """Begins imports beside the topic `events`, unless it is said otherwise."""
    create_project(ledger, "shop")

    def make(of: str, **values: Any) -> Import:
        said = {
            "topic": "events",
            "name": f"import:{of}",
            "topic_id": of,
            "uri": f"/files/{of}",
            "form": "jsonl",
            "sha256": "a" * 64,
            "bytes": 5,
            "rows": 20,
            "project_id": 1,
            "arrival_date": DAY,
        }
        with held_lease(ledger, "import/events", 60) as lease:
            return begin_import(ledger, lease, "run", **{**said, **values})

    return make


def plan(ledger: Engine, one: Import, start: int, end: int) -> Batch:
    """Plan rows of an import."""
    ranges = (Range(0, start, end),)
    batch = replace(
        batch_of(*ranges),
        batch_id=batch_id(CLUSTER, one.topic_id, ranges, 0),
        topic=one.name,
        cluster_id=CLUSTER,
        topic_id=one.topic_id,
    )
    with held_lease(ledger, "topic/events", 60) as lease:
        batches.record_plan(ledger, lease, batch)
    return batch


def become(ledger: Engine, batch: Batch, state: State) -> None:
    """Set a batch's state, as if all had been done that leads there."""
    with ledger.begin() as connection:
        connection.execute(
            update(batches_table)
            .where(batches_table.c.batch_id == batch.batch_id)
            .values(state=state)
        )


def test_an_import_is_begun_once(ledger: Engine, begin: Callable[..., Import]) -> None:
    """Begun again it is what it was, but for where the file is now."""
    first = begin("a")
    again = begin("a", uri="/elsewhere/a", arrival_date=date(2020, 1, 1), name="import:other")
    assert again == replace(first, uri="/elsewhere/a")
    assert import_named(ledger, "import:a") == again
    begin("b", topic="other")
    assert [one.topic_id for one in all_imports(ledger, "events")] == ["a"]
    assert [one.topic_id for one in all_imports(ledger, "events", "other")] == ["a", "b"]
    with pytest.raises(BatchError, match="knows no import import:c"):
        import_named(ledger, "import:c")


def test_an_import_is_discarded_as_a_whole(ledger: Engine, begin: Callable[..., Import]) -> None:
    """With all its batches, or, when one cannot be or a lease is lost, not at all."""
    one, other = begin("a"), begin("b", sha256="b" * 64)
    of_it = [plan(ledger, one, 1, 11), plan(ledger, one, 11, 21)]
    become(ledger, of_it[1], State.LOADING)
    with (
        held_lease(ledger, "import/events", 60) as own,
        held_lease(ledger, "topic/events", 60) as lease,
    ):
        with pytest.raises(BatchError, match="is loading and cannot become superseded"):
            discard(ledger, (own, lease), one, of_it)
        become(ledger, of_it[1], State.HELD)
        for lost in ((_older(own), lease), (own, _older(lease))):
            with pytest.raises(LeaseLost):
                discard(ledger, lost, one, of_it)
        found = batches.all_batches(ledger, one.name)
        assert [batch.state for batch in found] == [State.PLANNED, State.HELD]
        assert import_named(ledger, one.name).discarded_at is None
        gone = discard(ledger, (own, lease), one, of_it)
    assert gone == import_named(ledger, one.name)
    assert (gone.discarded_at or 0) > one.begun_at
    found = batches.all_batches(ledger, one.name)
    assert {batch.state for batch in found} == {State.SUPERSEDED}
    assert times_discarded(ledger, "events", 1, one.sha256) == 1
    for topic, project, sha256 in (
        ("other", 1, one.sha256),
        ("events", 2, one.sha256),
        ("events", 1, other.sha256),
    ):
        assert times_discarded(ledger, topic, project, sha256) == 0


def test_batches_of_imports_are_those_of_their_deployment(
    ledger: Engine, begin: Callable[..., Import]
) -> None:
    """Among all, by date and by state; what is only planned of a file no worker carries on."""
    ours, others = begin("a"), begin("b", topic="other")
    one, planned = plan(ledger, ours, 1, 11), plan(ledger, ours, 11, 21)
    plan(ledger, others, 1, 21)
    become(ledger, one, State.STAGED)
    topics = ("events", "events_historical")
    both = [one.batch_id, planned.batch_id]

    def ids(found: list[Batch]) -> list[str]:
        return sorted(each.batch_id for each in found)

    assert ids(batches.all_batches(ledger, *topics)) == sorted(both)
    assert ids(batches.batches_of_date(ledger, DAY, *topics)) == sorted(both)
    assert ids(batches.batches_between(ledger, DAY, DAY, *topics)) == sorted(both)
    assert ids(batches.unfinished_batches(ledger, *topics)) == [one.batch_id]
    assert ids(batches.batches_in(ledger, ours.name, State.PLANNED)) == [planned.batch_id]
    assert batches.states(ledger, *topics) == {State.STAGED: 1, State.PLANNED: 1}
    assert batches.all_batches(ledger, "events_historical") == []
    become(ledger, one, State.FAILED)
    assert ids(batches.waiting_for_a_person(ledger, *topics)) == [one.batch_id]
    assert batches.planned_ends(ledger, CLUSTER, ours.topic_id) == {0: 21}


def test_an_import_holds_back_no_completeness(ledger: Engine, begin: Callable[..., Import]) -> None:
    """What was received is complete, however much of a file is still to come."""
    plan(ledger, begin("a"), 1, 11)
    assert batches.oldest_date_not_loaded(ledger, ["events"], []) is None


def test_a_turn_is_asked_for_and_taken(ledger: Engine) -> None:
    """Asked for twice it is one; taken, or not asked for again in time, it is over."""
    assert not is_turn_asked_for(ledger, "topic/a")
    for _ in range(2):
        ask_for_turn(ledger, "topic/a")
    assert is_turn_asked_for(ledger, "topic/a")
    assert not is_turn_asked_for(ledger, "topic/b")
    take_turn(ledger, "topic/a")
    take_turn(ledger, "topic/b")
    assert not is_turn_asked_for(ledger, "topic/a")
    ask_for_turn(ledger, "topic/a")
    with ledger.begin() as connection:
        connection.execute(update(leases).values(expires_at=1))
    assert not is_turn_asked_for(ledger, "topic/a")


def test_an_import_is_known_by_both_its_leases(ledger: Engine) -> None:
    """Only while one process has both; a lease that ran out is nobody's."""
    names = "topic/a", "import/a"
    with held_lease(ledger, "topic/a", 60):
        assert is_held(ledger, "topic/a")
        assert not have_same_holder(ledger, *names)
        with held_lease(ledger, "import/a", 60):
            assert have_same_holder(ledger, *names)
            _give_away(ledger, "import/a", "elsewhere:1")
            assert not have_same_holder(ledger, *names)
            _give_away(ledger, "topic/a", "elsewhere:1")
            assert have_same_holder(ledger, *names)
    with ledger.begin() as connection:
        connection.execute(update(leases).values(expires_at=1))
    assert not have_same_holder(ledger, *names)
    assert not is_held(ledger, "topic/a")


def _older(lease: Lease) -> Lease:
    return replace(lease, fence=lease.fence - 1)


def _give_away(ledger: Engine, name: str, holder: str) -> None:
    with ledger.begin() as connection:
        connection.execute(update(leases).where(leases.c.name == name).values(holder=holder))
