"""Rejects of a date: what is a dead letter still, of how many records, whatever carried them."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Engine

from assets.pipeline.batch import Balance, Kind, Range, Staged, StagedFile, State
from assets.pipeline.redrive import _as_redrive
from orchestration.ledger.batches import read_batch, record_plan, register_staged, set_state
from orchestration.ledger.leases import Lease, held_lease
from orchestration.ledger.redrives import (
    Letter,
    Outcome,
    Place,
    record_redrive,
    register_outcomes,
)
from orchestration.ledger.rejects import Rejects, rejects_of, rejects_of_date
from tests.staging import DAY, batch_of

OTHER_DAY = date(2026, 3, 6)


def staged(ok: int, rejected: dict[str, int], duplicate: int = 0, tombstone: int = 0) -> Staged:
    """What staging gave: files of as many rows, and counts of partition 0."""
    letters = sum(rejected.values())
    rows = {Kind.EVENTS: ok, Kind.DEAD_LETTERS: letters, Kind.DUPLICATES: duplicate}
    balance = Balance(ok=ok, rejected=letters, duplicate=duplicate, tombstone=tombstone)
    files = tuple(StagedFile(kind, kind, count, 1, "") for kind, count in rows.items() if count)
    return Staged(files, {0: balance}, {}, 1, rejected)


def store(ledger: Engine, lease: Lease, start: int, what: Staged, day: date = DAY) -> str:
    """A staged batch of ten offsets."""
    batch = batch_of(Range(0, start, start + 10), day=day)
    record_plan(ledger, lease, batch)
    register_staged(ledger, lease, batch.batch_id, what, None, "1")
    return batch.batch_id


def test_the_share_is_over_all_batches_of_the_date(ledger: Engine) -> None:
    """Those of other dates and topics are left out, and so are tombstones."""
    with held_lease(ledger, "topic/events", 60) as lease:
        ids = [
            store(ledger, lease, 0, staged(6, {"not_json": 2}, duplicate=1, tombstone=1)),
            store(ledger, lease, 10, staged(7, {"not_json": 1, "not_utf8": 2})),
        ]
        store(ledger, lease, 20, staged(0, {"not_json": 10}), OTHER_DAY)
    expected = Rejects(19, 5, {"not_json": 3, "not_utf8": 2})
    assert rejects_of_date(ledger, DAY, "events", "events_historical") == expected
    assert rejects_of([read_batch(ledger, each) for each in ids]) == expected
    assert rejects_of_date(ledger, DAY, "other") == Rejects()
    assert Rejects().percent == 0.0


def test_what_a_redrive_settles_counts_no_more(ledger: Engine) -> None:
    """Once it is loaded: events and duplicates; what it could not mend is a dead letter still."""
    with held_lease(ledger, "topic/events", 60) as lease:
        old = read_batch(ledger, store(ledger, lease, 0, staged(6, {"not_json": 4})))
        places = [Place(0, offset) for offset in range(6, 9)]
        letters = [Letter(place, old.batch_id, "not_json", 1, 7) for place in places]
        redrive = _as_redrive(old, letters, "run")
        record_redrive(ledger, lease, redrive, letters, "{}")
        outcomes = dict(
            zip(
                places,
                [(Outcome.EVENT, ""), (Outcome.DUPLICATE, ""), (Outcome.REJECTED, "not_json")],
                strict=True,
            )
        )
        register_staged(
            ledger,
            lease,
            redrive.batch_id,
            staged(1, {"not_json": 1}, duplicate=1),
            None,
            "1",
            also=lambda connection: register_outcomes(connection, redrive.batch_id, outcomes),
        )
        before = rejects_of_date(ledger, DAY, "events")
        assert before == Rejects(10, 4, {"not_json": 4})
        for state in (State.LOADING, State.LOADED):
            set_state(ledger, lease, redrive.batch_id, state)
    after = rejects_of_date(ledger, DAY, "events")
    assert after == Rejects(10, 4, {"not_json": 4}, settled=2)
    assert (after.left, after.percent) == (2, 20.0)
    assert rejects_of([read_batch(ledger, redrive.batch_id)]) == Rejects()
    assert rejects_of([read_batch(ledger, old.batch_id)]).settled == 1
