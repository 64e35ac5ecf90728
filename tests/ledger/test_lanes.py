"""Lanes in the ledger: what of each is planned, and which ranges below that are open."""

from __future__ import annotations

from sqlalchemy import Engine, update

from assets.pipeline.batch import Range, State
from orchestration.ledger.batches import oldest_date_not_loaded, open_lanes, record_plan
from orchestration.ledger.lanes import Lane, OpenRange, lanes_of
from orchestration.ledger.leases import held_lease
from orchestration.ledger.tables import batches, ranges
from tests.staging import DAY, batch_of


def test_open_ranges_are_those_of_batches_that_are_not_loaded(ledger: Engine) -> None:
    """In any state but loaded; what a person accepted as lost is not open any more."""
    planned = [
        batch_of(Range(0, 0, 10), Range(1, 5, 6)),
        *(batch_of(Range(0, start, start + 10)) for start in (10, 20, 30)),
    ]
    where = (planned[0].cluster_id, planned[0].topic_id)
    assert lanes_of(ledger, *where) == {}
    with held_lease(ledger, "topic/events", 30) as lease:
        open_lanes(ledger, lease, "events", *where, {0: 0, 1: 5})
        for batch in planned:
            record_plan(ledger, lease, batch)
    states = (State.COMMITTED, State.GAP, State.HELD, State.LOADED)
    with ledger.begin() as connection:
        for batch, state in zip(planned, states, strict=True):
            connection.execute(
                update(batches)
                .where(batches.c.batch_id == batch.batch_id)
                .values(state=state, staged_at=None if state is State.GAP else 1)
            )
    gap, held = Range(0, 10, 20), Range(0, 20, 30)
    found = lanes_of(ledger, *where)
    assert found == {
        0: Lane(40, (OpenRange(gap, State.GAP, True), OpenRange(held, State.HELD, False))),
        1: Lane(6),
    }
    assert [lane.loaded_end for lane in found.values()] == [10, 6]
    assert [each.is_unread for each in found[0].open] == [True, False]
    assert oldest_date_not_loaded(ledger, ["events"], ["another"]) == DAY
    assert oldest_date_not_loaded(ledger, ["events"], [where[1]]) is None
    with ledger.begin() as connection:
        connection.execute(
            update(ranges).where(ranges.c.batch_id == planned[1].batch_id).values(skip_to=18)
        )
    assert lanes_of(ledger, *where)[0].loaded_end == 18
