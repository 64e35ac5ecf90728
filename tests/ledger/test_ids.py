"""An id is that of one row for ever, also when the row is gone; in a ledger from before, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, delete

from assets.pipeline.batch import Range, State
from orchestration.ledger import rebuilds
from orchestration.ledger.alarms import last_alarms, mark_told, note_alarms, untold_alarms
from orchestration.ledger.batches import give_back, record_plan
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.forget import forget_alarms, forget_rebuilds
from orchestration.ledger.gaps import all_gaps, gap_found
from orchestration.ledger.leases import held_lease
from orchestration.ledger.rules import Action, add_rule, remove_rule
from orchestration.ledger.tables import gaps
from tests.ledger.older import make_older
from tests.staging import DAY, batch_of


def a_rule(ledger: Engine) -> int:
    """Add one, and remove it."""
    added = add_rule(ledger, Action.DROP, event="noise")
    return remove_rule(ledger, added.rule_id).rule_id


def an_alarm(ledger: Engine) -> int:
    """One that is over, told to be so, and forgotten."""
    note_alarms(ledger, {"disk": "it is full"}, calm_us=0)
    note_alarms(ledger, {}, calm_us=0)
    mark_told(ledger, untold_alarms(ledger, 10))
    [alarm] = last_alarms(ledger, 10)
    assert forget_alarms(ledger, now_us() + 1) == 1
    return alarm.alarm_id


def a_rebuild(ledger: Engine) -> int:
    """One that was cancelled, and forgotten."""
    with held_lease(ledger, "rebuild", 60) as lease:
        begun = rebuilds.begin(ledger, lease, "events", DAY, "run")
        rebuilds.move(ledger, (lease,), begun, rebuilds.RebuildState.CANCELLED)
    assert forget_rebuilds(ledger, "events", now_us() + 1, []) == 1
    return begun.rebuild_id


def a_gap(ledger: Engine) -> int:
    """One of a batch that was planned before, forgotten as housekeeping does."""
    batch = batch_of(Range(0, 0, 3))
    with held_lease(ledger, "topic/events", 60) as lease:
        record_plan(ledger, lease, batch)
        gap_found(ledger, lease, batch.batch_id, "kafka", "0:[0,3)", 3, "retention")
        [gap] = all_gaps(ledger, "events")
        give_back(ledger, lease, batch.batch_id, State.GAP, State.PLANNED)
    with ledger.begin() as connection:
        connection.execute(delete(gaps))
        for table in ("ranges", "batches", "lanes"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    return gap.gap_id


@pytest.mark.parametrize("make", [a_rule, an_alarm, a_rebuild, a_gap])
def test_an_id_is_given_once(
    ledger: Engine, ledger_url: str, make: Callable[[Engine], int]
) -> None:
    """Whether the ledger is new or was made when they came again."""
    first = make(ledger)
    assert make(ledger) > first
    make_older(ledger)
    again = open_ledger(ledger_url)
    given = [make(again) for _ in range(3)]
    assert sorted(set(given)) == given
    again.dispose()
