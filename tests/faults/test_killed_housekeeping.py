"""Housekeeping that is killed anywhere: what was to go goes with the next run, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from assets.pipeline.batch import State
from assets.pipeline.failpoints import HOUSEKEEPING_POINTS
from orchestration.reconcile import everything, reconcile
from tests.faults.conftest import Scene
from tests.orchestration.test_letting_go import KEEP, TODAY, old_stack, on_disk, sent
from tests.stack import Stack

KILLED = "housekeeping is killed"

KINDS = ("staged", "dead_letters", "events", "keys", "ledger", "replaced")
DAYS = {f"keep_{kind}_days": KEEP for kind in KINDS}


@pytest.fixture
def scene(new_stack: Callable[..., Stack], ledger_values: dict[str, object]) -> Iterator[Scene]:
    """An old date that may go, and one of today."""
    made = Scene(old_stack(new_stack, **ledger_values, **DAYS))
    yield made
    made.stack.ledger.dispose()


@pytest.mark.matrix(KILLED)
def test_housekeeping_killed_at_one_point_after_the_other_gets_through(scene: Scene) -> None:
    """Batches are loaded in between; an audit finds nothing missing at any time."""
    stack, rows = scene.stack, 8 + 3
    for number, point in enumerate(HOUSEKEEPING_POINTS):
        assert scene.tidemark("housekeeping", failpoint=point) == -signal.SIGKILL, point
        scene.let_the_lease_run_out()
        stack.send(sent(1_000 + number, 0))
        assert scene.work() == 0
        rows += 1 if point != "rows-moved" else 1 - 8
        found = reconcile(stack.worker(), everything(stack.worker()), by_rows=True)
        assert list(map(str, found.findings)) == [], point
        assert stack.rows("SELECT count() FROM {database}.events") == [(rows,)]
    assert scene.tidemark("housekeeping") == 0
    left = stack.batches()
    assert {(batch.arrival_date, batch.state) for batch in left} == {(TODAY, State.COMMITTED)}
    for kind in ("events", "duplicates", "dead_letters", "keys"):
        assert on_disk(stack, kind) == set()
    assert len(on_disk(stack, "events", TODAY)) == len(left)
    assert stack.rows("SELECT count() FROM {database}.dead_letters") == [(0,)]
    copies = "SELECT name FROM system.tables WHERE database = '{database}' AND name LIKE '%swap%'"
    assert stack.rows(copies) == []
    assert scene.tidemark("housekeeping") == 0
    assert stack.batches() == left
