"""Audits in the ledger: the last proof of each batch, and whose turn is next."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, insert, update

from assets.pipeline.batch import State
from orchestration.ledger import audits as audits_module
from orchestration.ledger.audits import (
    HOLDS,
    audit_summary,
    audits_of,
    due_for_audit,
    record_audits,
)
from orchestration.ledger.tables import batches
from tests.staging import DAY


@pytest.fixture
def loaded(ledger: Engine) -> Engine:
    """A ledger with six loaded batches, b0 the oldest, and one that is planned."""
    with ledger.begin() as connection:
        for number, state in enumerate([*[State.COMMITTED] * 6, State.PLANNED]):
            connection.execute(
                insert(batches).values(
                    batch_id=f"b{number}",
                    topic="events",
                    cluster_id="cluster",
                    topic_id="id",
                    arrival_date=DAY,
                    generation=0,
                    code_version="1",
                    state=state,
                    run_id="run",
                    planned_at=number,
                )
            )
    return ledger


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is one µs later."""
    ticks = iter(range(1_000, 9_999))
    monkeypatch.setattr(audits_module, "now_us", lambda: next(ticks))


def due(ledger: Engine, limit: int) -> list[str]:
    """The ids of what is due."""
    return [batch.batch_id for batch in due_for_audit(ledger, limit, "events")]


@pytest.mark.usefixtures("clock")
def test_every_loaded_batch_has_its_turn(loaded: Engine) -> None:
    """Never proved goes first, then the longest ago; what is not loaded has no turn."""
    turns = []
    for _ in range(4):
        some = due(loaded, 2)
        record_audits(loaded, [(batch_id, HOLDS, "") for batch_id in some])
        turns.append(some)
    assert turns == [["b0", "b1"], ["b2", "b3"], ["b4", "b5"], ["b0", "b1"]]


@pytest.mark.usefixtures("clock")
def test_what_did_not_hold_is_proved_each_time_and_stops_no_other(loaded: Engine) -> None:
    """Failed batches take half of the places at most, whatever their number."""
    record_audits(loaded, [(f"b{number}", "missing", "gone") for number in range(4)])
    record_audits(loaded, [("b4", HOLDS, ""), ("b5", HOLDS, "")])
    assert due(loaded, 4) == ["b0", "b1", "b4", "b5"]
    record_audits(loaded, [("b0", HOLDS, ""), ("b1", HOLDS, "")])
    assert due(loaded, 4) == ["b2", "b3", "b4", "b5"]


@pytest.mark.usefixtures("clock")
def test_the_last_proof_counts(loaded: Engine) -> None:
    """A second proof of a batch takes the place of the first; the summary tells how all stand."""
    record_audits(loaded, [("b1", "missing", "in events, all of it"), ("b0", HOLDS, "")])
    summary = audit_summary(loaded, "events")
    assert (summary.loaded, summary.proved, summary.oldest_proof) == (6, 2, 1_000)
    assert [(audit.batch_id, audit.outcome) for audit in summary.failed] == [("b1", "missing")]
    record_audits(loaded, [("b1", HOLDS, "")])
    assert audit_summary(loaded, "events").failed == ()
    assert sorted(audit.proved_at for audit in audits_of(loaded, ["b0", "b1", "b2"])) == [
        *(1_000, 1_001)
    ]


def test_a_batch_that_is_loaded_no_more_is_not_told_of(loaded: Engine) -> None:
    """What was found of a batch does not count while it waits to be loaded again."""
    record_audits(loaded, [("b1", "missing", "gone")])
    with loaded.begin() as connection:
        connection.execute(
            update(batches).where(batches.c.batch_id == "b1").values(state=State.LOADING)
        )
    summary = audit_summary(loaded, "events")
    assert (summary.loaded, summary.proved, summary.failed) == (5, 0, ())
