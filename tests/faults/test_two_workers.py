"""Two workers on one topic: one of them works, the other is refused, whenever it wakes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import WORKER_SECONDS, Scene
from tests.faults.run_worker import AGAIN

NewScene = Callable[..., Scene]

PUT_OFF = (0, AGAIN)
"""How a worker ends that another one has overtaken: told so, or, if it was at an early load and has
nothing left to stage, with nothing left to do."""


@pytest.mark.matrix("two planners at once")
def test_workers_that_start_together(new_scene: NewScene, ledger_values: dict[str, object]) -> None:
    """Four processes on a new topic: who has to wait tries again, and every range is cut once."""
    scene = new_scene(batch_max_records=100, **ledger_values)
    workers = [scene.start_worker() for _ in range(4)]
    codes = [worker.wait(WORKER_SECONDS) for worker in workers]
    assert set(codes) <= {0, AGAIN}
    assert 0 in codes
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("two planners at once")
def test_a_planner_that_is_late(new_scene: NewScene, ledger_values: dict[str, object]) -> None:
    """Two cut the same range; the one whose lease was taken meanwhile cannot store it."""
    scene = new_scene(batch_max_records=150, **ledger_values)
    late = scene.stop_at("before-plan")
    scene.let_the_lease_run_out()
    assert scene.work_when_free() == 0
    assert scene.wake(late) == AGAIN
    scene.prove()


@pytest.mark.matrix("a paused worker wakes")
@pytest.mark.parametrize("point", ["while-staging", "after-stage", "before-insert", "before-send"])
def test_a_paused_worker_wakes(new_scene: NewScene, point: str) -> None:
    """Another one has done all its work: it changes nothing any more, and says so."""
    scene = new_scene(batch_max_records=150)
    paused = scene.stop_at(point)
    assert scene.work() == AGAIN  # the lease is not over yet
    scene.let_the_lease_run_out()
    assert scene.work_when_free() == 0
    is_at_a_load = point in ("before-insert", "before-send")
    assert scene.wake(paused) in (PUT_OFF if is_at_a_load else (AGAIN,))
    scene.prove()


@pytest.mark.matrix("a paused worker wakes")
def test_a_paused_worker_wakes_on_postgresql(
    new_scene: NewScene, postgresql: Callable[[], str]
) -> None:
    """Its insert goes out after the other one's, and is dropped by its token."""
    scene = new_scene(batch_max_records=150, ledger_url=postgresql())
    paused = scene.stop_at("before-send")
    scene.let_the_lease_run_out()
    assert scene.work_when_free() == 0
    assert scene.wake(paused) in PUT_OFF
    scene.prove()


@pytest.mark.matrix("a paused worker wakes", "deduplication window gone")
def test_a_paused_worker_wakes_when_its_token_is_forgotten(new_scene: NewScene) -> None:
    """Without a token to drop it, the insert is not sent: the lease is asked right before."""
    scene = new_scene(batch_max_records=150)
    paused = scene.stop_at("before-check")
    scene.let_the_lease_run_out()
    assert scene.work_when_free() == 0
    scene.stack.client.command(
        f"ALTER TABLE {scene.stack.database}.events "
        "MODIFY SETTING non_replicated_deduplication_window = 1"
    )
    scene.send_more(40)
    assert scene.work_when_free() == 0
    assert scene.wake(paused) in PUT_OFF
    scene.prove()
