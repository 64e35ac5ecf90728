"""The worker is killed between two steps; the next one carries every record through, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import select

from assets.pipeline.failpoints import POINTS
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.tables import key_files
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


@pytest.mark.matrix(*dict.fromkeys(ROW_OF_POINT.values()))
def test_workers_killed_at_one_point_after_the_other_get_through(
    new_scene: NewScene, ledger_values: dict[str, object]
) -> None:
    """Each worker takes up what the ones before it left and what came since, and dies one point on.

    Then every offset comes out exactly once, the ledger has an attempt without an end for each
    that was cut off, and the lake has no file that the ledger does not name.
    """
    scene = new_scene(batch_max_records=150, **ledger_values)
    assert tuple(ROW_OF_POINT) == POINTS
    for point in POINTS:
        scene.send_more(20)
        before = cut_off(scene)
        scene.kill_at(point)
        died = Counter([STAGE_OF_POINT[point]] if point in STAGE_OF_POINT else [])
        # While one batch is staged another one is loaded: that attempt may die with it.
        assert died <= cut_off(scene) - before <= Counter(stage=1, load=1), point
    assert scene.work() == 0
    scene.prove()
    ended = [each.outcome for each in attempts(scene) if each.ended_at is not None]
    assert set(ended) == {"ok"}
    assert in_the_lake(scene) == named_in_the_ledger(scene)


def attempts(scene: Scene) -> list[Attempt]:
    """Every attempt at every batch."""
    return [
        each
        for batch in scene.stack.batches()
        for each in attempts_of(scene.stack.ledger, batch.batch_id)
    ]


def in_the_lake(scene: Scene) -> set[str]:
    """Every file that lies there."""
    lake = scene.stack.lake_file("")
    return {str(path.relative_to(lake)) for path in lake.rglob("*") if path.is_file()}


def named_in_the_ledger(scene: Scene) -> set[str]:
    """Every file that it knows, those included that are kept a while for readers."""
    with scene.stack.ledger.connect() as connection:
        keys = set(connection.scalars(select(key_files.c.path)))
    batches = scene.stack.batches()
    return keys | {file.path for batch in batches if batch.staged for file in batch.staged.files}


def cut_off(scene: Scene) -> Counter[str]:
    """How many attempts at each stage have no end."""
    return Counter(each.stage for each in attempts(scene) if each.ended_at is None)


@pytest.mark.matrix("while staging")
def test_what_is_half_written_is_removed(new_scene: NewScene) -> None:
    """No part of a file stays in the lake, whoever left it."""
    scene = new_scene(sound=30)
    for point in ("while-staging", "half-published"):
        scene.kill_at(point)
    lake = scene.stack.lake_file("")
    assert list(lake.rglob("*.partial")) != []
    assert scene.work() == 0
    assert list(lake.rglob("*.partial")) == []
    scene.prove()
