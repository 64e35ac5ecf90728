"""The worker is killed between two steps; the next one carries every record through, once."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from assets.pipeline.batch import Balance
from assets.pipeline.failpoints import POINTS
from orchestration.ledger.attempts import attempts_of
from tests.faults.conftest import Scene

NewScene = Callable[..., Scene]

STAGE_OF_POINT = {
    "after-stage": "stage",  # died while it was at it: the attempt has no end
    "before-insert": "load",
    "after-insert": "load",
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_worker_loses_and_doubles_nothing(new_scene: NewScene, point: str) -> None:
    """Killed at the point, then run again: every offset comes out exactly once."""
    scene = new_scene(batch_max_records=150)
    assert scene.work(point) == -signal.SIGKILL
    assert scene.work() == 0
    scene.prove()
    first = scene.stack.batches()[0]
    attempts = attempts_of(scene.stack.ledger, first.batch_id)
    died = STAGE_OF_POINT.get(point)
    assert [(each.stage, each.number) for each in attempts if each.ended_at is None] == (
        [(died, 1)] if died else []
    )
    assert {each.outcome for each in attempts if each.ended_at is not None} == {"ok"}


def test_a_worker_killed_again_and_again_gets_through(new_scene: NewScene) -> None:
    """One point after the other kills a worker of the same batches, some of them twice."""
    scene = new_scene(batch_max_records=150)
    for point in (*POINTS[:3], POINTS[1], *POINTS[2:], POINTS[-1]):
        assert scene.work(point) in (-signal.SIGKILL, 0)
    assert scene.work() == 0
    scene.prove()


def test_records_that_come_after_the_crash_are_carried_too(new_scene: NewScene) -> None:
    """What the killed worker had planned and what came since are both complete."""
    scene = new_scene(batch_max_records=150)
    assert scene.work("after-insert") == -signal.SIGKILL
    more = scene.stack.send_numbers(range(10_000, 10_040), 2)
    scene.stored += more
    scene.delivered += Balance(ok=len(more))
    assert scene.work() == 0
    scene.prove()
