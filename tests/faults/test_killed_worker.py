"""The worker is killed between two steps; the next one carries every record through, once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from assets.pipeline.failpoints import POINTS
from orchestration.ledger.attempts import attempts_of
from tests.faults.conftest import Scene

NewScene = Callable[..., Scene]

STAGE_OF_POINT = {
    "while-staging": "stage",  # died while it was at it: the attempt has no end
    "half-published": "stage",
    "after-stage": "stage",
    "after-register": "stage",
    "before-insert": "load",
    "before-check": "load",
    "before-send": "load",
    "after-send": "load",
    "after-insert": "load",
}

ROW_OF_POINT = {
    "before-plan": "before the plan is stored",
    "after-plan": "after the plan, before reading",
    "while-staging": "while staging",
    "half-published": "while staging",
    "after-stage": "files published, not registered",
    "after-register": "registered, before the insert",
    "between-topics": "between the topics of one run",
    "before-insert": "registered, before the insert",
    "before-check": "registered, before the insert",
    "before-send": "registered, before the insert",
    "after-send": "insert done, answer lost",
    "after-insert": "proved, before the ledger knows",
    "after-loaded": "loaded, before the group's commit",
    "after-commit": "loaded, before the group's commit",
    "after-dead-letters": "committed, dead letters not reported",
    "after-mirror": "committed, dead letters not reported",
}


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, marks=pytest.mark.matrix(ROW_OF_POINT[point])) for point in POINTS],
)
def test_a_killed_worker_loses_and_doubles_nothing(new_scene: NewScene, point: str) -> None:
    """Killed at the point, then run again: every offset comes out exactly once."""
    scene = new_scene(batch_max_records=150)
    scene.kill_at(point)
    assert scene.work() == 0
    scene.prove()
    first = scene.stack.batches()[0]
    attempts = attempts_of(scene.stack.ledger, first.batch_id)
    died = STAGE_OF_POINT.get(point)
    assert [(each.stage, each.number) for each in attempts if each.ended_at is None] == (
        [(died, 1)] if died else []
    )
    assert {each.outcome for each in attempts if each.ended_at is not None} == {"ok"}
    partial = scene.stack.lake_file("").rglob("*.partial")
    assert list(partial) == []


@pytest.mark.matrix(*dict.fromkeys(ROW_OF_POINT.values()))
def test_workers_killed_at_one_point_after_the_other_get_through(
    new_scene: NewScene, ledger_values: dict[str, object]
) -> None:
    """Each worker takes up what the ones before it left, and dies one point further on."""
    scene = new_scene(batch_max_records=150, **ledger_values)
    for point in POINTS:
        scene.send_more(20)
        scene.kill_at(point)
    assert scene.work() == 0
    scene.prove()


def test_records_that_come_after_the_crash_are_carried_too(new_scene: NewScene) -> None:
    """What the killed worker had planned and what came since are both complete."""
    scene = new_scene(batch_max_records=150)
    scene.kill_at("after-insert")
    scene.send_more(40)
    assert scene.work() == 0
    scene.prove()
