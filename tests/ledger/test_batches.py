"""The ledger's batches: what may follow what, and that nothing is written by halves."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import date

import pytest
from sqlalchemy import Connection, Engine, event, insert

from assets.pipeline.batch import (
    TRANSITIONS,
    UNFINISHED,
    WAITING,
    Balance,
    Batch,
    Fingerprint,
    KeyFile,
    Kind,
    Range,
    Staged,
    StagedFile,
    State,
)
from assets.pipeline.errors import BatchError, LeaseLost
from orchestration.ledger import batches
from orchestration.ledger.backoffs import backoffs_now, batch_name, note_failure
from orchestration.ledger.batches import (
    PlanConflict,
    all_batches,
    average_record_bytes,
    batches_of_date,
    batches_of_run,
    planned_ends,
    read_batch,
    record_plan,
    register_staged,
    set_dead_letters_loaded,
    set_state,
    stage_again,
    states,
    unfinished_batches,
    waiting_for_a_person,
)
from orchestration.ledger.keys import (
    add_key_file,
    announce_key_file,
    forget_key_files,
    live_key_files,
    live_paths,
    replace_key_files,
    retired_key_files,
)
from orchestration.ledger.leases import Lease, check_fence, held_lease
from orchestration.ledger.tables import lanes
from tests.capture_api.conftest import until
from tests.stack import ROOT
from tests.staging import DAY, batch_of

STAGED = Staged(
    files=(
        StagedFile(Kind.EVENTS, "events/one.parquet", 3, 1_000, "a" * 64),
        StagedFile(Kind.DEAD_LETTERS, "dead_letters/one.parquet", 1, 500, "b" * 64),
    ),
    balances={0: Balance(3, 1, 0, 1, 0), 1: Balance(absent=2)},
    fingerprints={
        Kind.EVENTS: (Fingerprint(0, 3, 0, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - 2),),
        Kind.DEAD_LETTERS: (Fingerprint(0, 1, 3, 3, 3, 9),),
    },
    bytes_read=7_000,
    reasons={"not_json": 1},
)
KEYS = KeyFile("keys/one.arrow", DAY, 3)


@pytest.fixture
def planned(ledger: Engine) -> Callable[..., Batch]:
    """Plans batches one after the other, on lanes of their own unless ranges are given."""
    partitions = itertools.count()

    def plan(*ranges: Range, **values: object) -> Batch:
        ranges = ranges or (Range(next(partitions), 0, 5),)
        batch = dataclasses.replace(batch_of(*ranges), **values)  # type: ignore[arg-type]
        with held_lease(ledger, "topic/events", 60) as lease:
            record_plan(ledger, lease, batch)
        return batch

    return plan


def brought_to(ledger: Engine, lease: Lease, batch: Batch, state: State) -> None:
    """Move a planned batch to a state by a way that is allowed."""
    ways = {
        State.PLANNED: (),
        State.GAP: (State.GAP,),
        State.FAILED: (State.FAILED,),
        State.HELD: (State.HELD,),
        State.STAGED: (State.STAGED,),
        State.LOADING: (State.STAGED, State.LOADING),
        State.SUSPECT: (State.STAGED, State.LOADING, State.SUSPECT),
        State.SUPERSEDED: (State.GAP, State.SUPERSEDED),
        State.LOADED: (State.STAGED, State.LOADING, State.LOADED),
        State.COMMITTED: (State.STAGED, State.LOADING, State.LOADED, State.COMMITTED),
    }
    for step in ways[state]:
        if step in (State.STAGED, State.HELD):
            hold = "too much of it" if step is State.HELD else ""
            register_staged(ledger, lease, batch.batch_id, STAGED, None, "1", hold=hold)
        else:
            set_state(ledger, lease, batch.batch_id, step)


def test_a_batch_is_read_as_it_was_at_one_moment(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """What another worker writes while it is read shows as a whole or not at all."""
    batch = planned()
    with held_lease(ledger, "topic/events", 60) as lease:
        brought_to(ledger, lease, batch, State.LOADING)

        before = read_batch(ledger, batch.batch_id).staged
        left = iter(["once, after the first of several SELECTs"])

        def write_meanwhile(_conn: object, _cursor: object, said: str, *_: object) -> None:
            if said.startswith("SELECT") and next(left, None):
                stage_again(ledger, lease, batch.batch_id, "its file is gone")

        event.listen(ledger, "after_cursor_execute", write_meanwhile)
        assert read_batch(ledger, batch.batch_id).staged == before
        assert read_batch(ledger, batch.batch_id).staged is None


@pytest.mark.parametrize("start", State)
def test_only_the_transitions_are_allowed(
    ledger: Engine, planned: Callable[..., Batch], start: State
) -> None:
    """From each state every other is refused with both names, save those that may follow."""
    for to in State:
        batch = planned()
        with held_lease(ledger, "topic/events", 60) as lease:
            brought_to(ledger, lease, batch, start)
            if to in TRANSITIONS[start]:
                set_state(ledger, lease, batch.batch_id, to, "a note")
                assert read_batch(ledger, batch.batch_id).state is to
                assert read_batch(ledger, batch.batch_id).note == "a note"
            else:
                with pytest.raises(BatchError, match=f"is {start} and cannot become {to}"):
                    set_state(ledger, lease, batch.batch_id, to)
                assert read_batch(ledger, batch.batch_id).state is start


def test_what_no_worker_tries_any_more_is_not_said_to_fail(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """A batch's back-offs are gone, at every stage, once it waits for a person or is given up."""
    for state in (*WAITING, State.SUPERSEDED, State.COMMITTED):
        batch = planned()
        name = batch_name(batch.batch_id, "load")
        with held_lease(ledger, "topic/events", 60) as lease:
            note_failure(ledger, lease, name, BatchError("no"), lambda failures: 0)
            brought_to(ledger, lease, batch, state)
        assert (name in backoffs_now(ledger)) == (state is State.COMMITTED)


def test_a_batch_is_read_back_as_it_was_written(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """Ranges, files, balances and fingerprints of 64 bits come back equal, with their times."""
    batch = planned(Range(0, 0, 5), Range(1, 0, 2))
    assert read_batch(ledger, batch.batch_id) == batch
    with held_lease(ledger, "topic/events", 60) as lease:
        register_staged(ledger, lease, batch.batch_id, STAGED, KEYS, "1")
        found = read_batch(ledger, batch.batch_id)
        assert found.staged == STAGED
        assert found.staged_at is not None
        set_state(ledger, lease, batch.batch_id, State.LOADING)
        set_state(ledger, lease, batch.batch_id, State.LOADED)
        set_state(ledger, lease, batch.batch_id, State.COMMITTED)
        set_dead_letters_loaded(ledger, lease, batch.batch_id)
    done = read_batch(ledger, batch.batch_id)
    assert None not in (done.loaded_at, done.committed_at, done.dead_letters_loaded_at)
    assert done.staged_at is not None
    assert done.loaded_at is not None
    assert done.staged_at <= done.loaded_at
    assert average_record_bytes(ledger, "events") == 7_000 / 7


def test_a_batch_cannot_be_staged_twice(ledger: Engine, planned: Callable[..., Batch]) -> None:
    """The second registration is refused, and leaves the first as it was."""
    batch = planned()
    other = dataclasses.replace(STAGED, files=(), bytes_read=1)
    with held_lease(ledger, "topic/events", 60) as lease:
        register_staged(ledger, lease, batch.batch_id, STAGED, KEYS, "1")
        with pytest.raises(BatchError, match="is staged and cannot become staged"):
            register_staged(ledger, lease, batch.batch_id, other, KEYS, "1")
    found = read_batch(ledger, batch.batch_id).staged
    assert found is not None
    assert (found.files, found.bytes_read) == (STAGED.files, STAGED.bytes_read)


def test_what_a_held_batch_had_is_replaced_when_it_is_staged_again(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """Files, fingerprints and reasons of before are gone; from another state it is refused."""
    batch = planned()
    other = dataclasses.replace(
        STAGED, files=STAGED.files[:1], balances={0: Balance(5)}, reasons={"not_utf8": 2}
    )
    with held_lease(ledger, "topic/events", 60) as lease:
        register_staged(ledger, lease, batch.batch_id, STAGED, None, "1", hold="look at it")
        found = read_batch(ledger, batch.batch_id)
        assert (found.state, found.note) == (State.HELD, "look at it")
        assert waiting_for_a_person(ledger, "events") == [found]
        with pytest.raises(BatchError, match="is held and cannot become staged"):
            register_staged(ledger, lease, batch.batch_id, other, None, "2")
        assert read_batch(ledger, batch.batch_id) == found
        register_staged(ledger, lease, batch.batch_id, other, None, "2", before=State.HELD)
    found = read_batch(ledger, batch.batch_id)
    assert (found.state, found.note, found.code_version) == (State.STAGED, "", "2")
    assert found.staged == other


def test_a_batch_nobody_planned_is_an_error(ledger: Engine) -> None:
    """Reading or moving an unknown batch says that it is unknown."""
    with pytest.raises(BatchError, match="the ledger knows no batch nothing"):
        read_batch(ledger, "nothing")
    with (
        held_lease(ledger, "topic/events", 60) as lease,
        pytest.raises(BatchError, match="is unknown"),
    ):
        set_state(ledger, lease, "nothing", State.GAP)


@pytest.mark.parametrize(
    "second",
    [
        (Range(0, 0, 5),),  # the same again
        (Range(0, 3, 8),),  # an overlap
        (Range(0, 6, 9),),  # a hole
        (Range(1, 0, 4), Range(0, 0, 1)),  # a new lane, and an overlap
    ],
)
def test_a_plan_must_begin_where_the_last_one_ended(
    ledger: Engine, planned: Callable[..., Batch], second: tuple[Range, ...]
) -> None:
    """Any other start is a conflict, and no lane is moved."""
    first = planned(Range(0, 0, 5))
    with pytest.raises(PlanConflict, match="partition 0 is planned up to 5"):
        planned(*second)
    assert planned_ends(ledger, "cluster", "topic-id") == {0: 5}
    assert all_batches(ledger, "events") == [first]
    planned(Range(0, 5, 9), Range(1, 7, 8))
    assert planned_ends(ledger, "cluster", "topic-id") == {0: 9, 1: 8}


def test_topics_made_anew_have_lanes_of_their_own(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """Another incarnation, and another cluster, are planned from their own beginning."""
    planned(Range(0, 0, 5))
    planned(Range(0, 0, 3), topic_id="second", batch_id="b")
    planned(Range(0, 0, 2), cluster_id="elsewhere", batch_id="c")
    assert planned_ends(ledger, "cluster", "topic-id") == {0: 5}
    assert planned_ends(ledger, "cluster", "second") == {0: 3}
    assert planned_ends(ledger, "elsewhere", "topic-id") == {0: 2}
    assert planned_ends(ledger, "elsewhere", "second") == {}


def test_every_write_asks_for_the_fence(ledger: Engine, planned: Callable[..., Batch]) -> None:
    """With a lease that was taken over, nothing whatever is written."""
    batch = planned()
    with held_lease(ledger, "topic/events", 60) as lease:
        late = Lease(lease.name, lease.fence - 1)
        never = Lease("topic/other", 1)
        for old in (late, never):
            with pytest.raises(LeaseLost):
                record_plan(ledger, old, batch_of(Range(9, 0, 1)))
            with pytest.raises(LeaseLost):
                register_staged(ledger, old, batch.batch_id, STAGED, KEYS, "1")
            with pytest.raises(LeaseLost):
                set_state(ledger, old, batch.batch_id, State.GAP)
            with pytest.raises(LeaseLost):
                set_dead_letters_loaded(ledger, old, batch.batch_id)
    assert all_batches(ledger, "events") == [batch]
    assert live_key_files(ledger, DAY, DAY) == []


def test_unfinished_batches_are_those_a_worker_carries_on(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """Batches that wait for a person, or are done with, are not among them; oldest plan first."""
    of_state = {}
    for number, state in enumerate(State):
        of_state[state] = planned(planned_at=100 - number)
        with held_lease(ledger, "topic/events", 60) as lease:
            brought_to(ledger, lease, of_state[state], state)
    found = [batch.batch_id for batch in unfinished_batches(ledger, "events")]
    expected = [*UNFINISHED, State.COMMITTED]  # its dead letters are not loaded yet
    order = sorted(expected, key=lambda state: of_state[state].planned_at)
    assert found == [of_state[state].batch_id for state in order]
    with held_lease(ledger, "topic/events", 60) as lease:
        set_dead_letters_loaded(ledger, lease, of_state[State.COMMITTED].batch_id)
    assert of_state[State.COMMITTED].batch_id not in {
        batch.batch_id for batch in unfinished_batches(ledger, "events")
    }
    assert unfinished_batches(ledger, "other") == []
    assert states(ledger, "events") == dict.fromkeys(State, 1)


def test_batches_are_found_by_run_and_by_date(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """A run's batches and an arrival date's are listed in the order of planning."""
    later = planned(run_id="a", planned_at=2)
    first = planned(run_id="a", planned_at=1, arrival_date=date(2026, 1, 1))
    other = planned(run_id="b", planned_at=3)
    assert batches_of_run(ledger, "a") == [first, later]
    assert batches_of_date(ledger, DAY, "events") == [later, other]
    assert batches_of_date(ledger, date(2026, 1, 1), "events") == [first]
    assert average_record_bytes(ledger, "events") is None


def test_many_batches_are_read_at_once(
    ledger: Engine, planned: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More batches than a statement takes parameters are read with all their ranges."""
    monkeypatch.setattr(batches, "_IDS_A_QUERY", 3)
    made = [planned(planned_at=number) for number in range(10)]
    assert all_batches(ledger, "events") == made


def test_key_files_are_replaced_once(ledger: Engine, planned: Callable[..., Batch]) -> None:
    """Of two workers that merged the same files one wins, and the window shows its file only."""
    batch = planned()
    with held_lease(ledger, "topic/events", 60) as lease:
        register_staged(ledger, lease, batch.batch_id, STAGED, KEYS, "1")
    merged, late = KeyFile("keys/merged.arrow", DAY, 3), KeyFile("keys/late.arrow", DAY, 3)
    for file in (merged, late):
        announce_key_file(ledger, file.path, DAY)
    assert replace_key_files(ledger, [KEYS], [merged]) is True
    assert replace_key_files(ledger, [KEYS], [late]) is False
    assert live_key_files(ledger, DAY, DAY) == [merged]
    assert live_key_files(ledger, date(2026, 1, 1), date(2026, 1, 2)) == []
    forget_key_files(ledger, retired_key_files(ledger, 1 << 62))
    assert replace_key_files(ledger, [merged], [late]) is False, "it is gone from the lake"
    assert live_key_files(ledger, DAY, DAY) == [merged]


def test_a_lane_opened_by_another_planner_at_the_same_moment(ledger: Engine) -> None:
    """Whoever comes second waits for the first one's transaction, then has a conflict."""
    found: list[type] = []

    def plan() -> None:
        try:
            with held_lease(ledger, "topic/events", 60) as lease:
                record_plan(ledger, lease, batch_of(Range(0, 0, 5)))
        except Exception as error:
            found.append(type(error))

    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    second = threading.Thread(target=plan)
    with ledger.begin() as first:
        lane = {"cluster_id": "cluster", "topic_id": "topic-id", "partition": 0}
        values = {"topic": "events", "planned_end": 3, "opened_at": 1}
        first.execute(insert(lanes).values(**lane, **values))
        second.start()
        if ledger.dialect.name == "postgresql":
            until(lambda: first.exec_driver_sql(waiting).scalar_one() >= 1, "it waits")
    second.join(60)
    assert found == [PlanConflict]
    assert all_batches(ledger, "events") == []


def test_who_registers_sees_what_was_registered_while_it_waited(
    ledger: Engine, planned: Callable[..., Batch]
) -> None:
    """Whatever is looked at in its transaction: it has waited for the row of the lease first."""
    batch = planned()
    seen: list[set[str]] = []

    def look(connection: Connection) -> None:
        seen.append(live_paths(connection, DAY, DAY))

    def register() -> None:
        register_staged(ledger, lease, batch.batch_id, STAGED, None, "1", also=look)

    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with held_lease(ledger, "topic/events", 60) as lease:
        second = threading.Thread(target=register)
        with ledger.begin() as first:
            check_fence(first, lease)
            add_key_file(first, KEYS)
            second.start()
            if ledger.dialect.name == "postgresql":
                until(lambda: first.exec_driver_sql(waiting).scalar_one() >= 1, "it waits")
        second.join(60)
    assert seen == [{KEYS.path}]


_PLANNER = """
import sys
from assets.pipeline.batch import Range
from assets.pipeline.errors import PlanConflict
from orchestration.ledger.batches import planned_ends, record_plan
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.leases import held_lease
from tests.staging import batch_of
ledger = open_ledger(sys.argv[1])
won = 0
with held_lease(ledger, "topic/" + sys.argv[2], 60) as lease:  # not the other's: CAS alone decides
    while (end := planned_ends(ledger, "cluster", "topic-id").get(0, 0)) < 60:
        try:
            record_plan(ledger, lease, batch_of(Range(0, end, end + 1)))
            won += 1
        except PlanConflict:
            pass
print(won)
"""


def test_two_processes_plan_without_overlap_or_hole(ledger: Engine, ledger_url: str) -> None:
    """Planners that race from two processes store every range once, whoever wins it."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _PLANNER, ledger_url, name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    won = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    found = sorted(range_ for batch in all_batches(ledger, "events") for range_ in batch.ranges)
    assert found == [Range(0, at, at + 1) for at in range(60)]
    assert sum(won) == 60
