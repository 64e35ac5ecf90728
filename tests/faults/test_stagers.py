"""Batches of several partitions are staged at once, each by a process that may be killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from assets.pipeline import stager_pool
from assets.pipeline.batch import State
from assets.pipeline.errors import BatchError, StagerGone
from assets.pipeline.failpoints import VARIABLE
from assets.pipeline.key_upkeep import _copied
from assets.pipeline.staging import stage_batches
from orchestration.ledger.attempts import Attempt
from orchestration.ledger.keys import live_key_files, replace_key_files
from tests.faults.conftest import WORKER_SECONDS, Scene
from tests.faults.run_worker import WAITS
from tests.faults.test_killed_worker import attempts, in_the_lake, named_in_the_ledger
from tests.forks import Forked
from tests.pids import alive, await_ended, process_state
from tests.records import delete_before

NewScene = Callable[..., Scene]

RUN_POINTS = (
    "before-plan",
    "after-plan",
    "begun",
    "after-stage",
    "compared",
    "stage-again",
    "after-register",
    "before-insert",
    "after-insert",
    "after-loaded",
)
"""Points that the run passes, not its stagers."""

STAGER_POINTS = ("while-staging", "half-published", "before-answer")


@pytest.fixture
def two_stagers(new_scene: NewScene) -> Iterator[NewScene]:
    """Makes scenes with two partitions and two stagers, which have a batch each at first."""
    scenes: list[Scene] = []

    def make(sound: int = 300, **values: object) -> Scene:
        values = {"batch_max_records": 200, "batch_backoff_max_seconds": 1e-6, **values}
        scenes.append(new_scene(sound, stagers=2, **values))
        return scenes[-1]

    yield make
    for scene in scenes:
        for pid in all_stagers(scene):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.matrix("one uuid in two partitions that are staged at once")
def test_what_was_sent_into_two_partitions_is_stored_once(
    two_stagers: NewScene, ledger_values: dict[str, object]
) -> None:
    """Neither stager sees the other's keys: the one that is registered later is staged again."""
    scene = two_stagers(0, batch_max_records=100, **ledger_values)
    scene.send_twice(50)
    assert scene.work() == 0
    scene.prove()
    assert failures(scene) == ["SeenMeanwhile"]
    first, second = scene.stack.batches()
    assert first.staged is not None
    assert second.staged is not None
    assert first.staged.balance.ok == second.staged.balance.duplicate == 50
    assert in_the_lake(scene) == named_in_the_ledger(scene)


@pytest.mark.matrix("one uuid in two partitions that are staged at once")
@pytest.mark.parametrize("point", ["compared", "after-register"])
def test_the_index_is_merged_meanwhile(
    two_stagers: NewScene, ledger_values: dict[str, object], point: str
) -> None:
    """Names that are new say nothing of keys: these are compared, in whatever file they are."""
    scene = two_stagers(0, batch_max_records=100, **ledger_values)
    scene.send_more(30)
    assert scene.work() == 0
    scene.send_twice(60)
    run = scene.stop_at(point)
    merge_the_index(scene)
    assert scene.wake(run) == 0
    scene.prove()
    assert failures(scene) == ["SeenMeanwhile"]


@pytest.mark.matrix("a stager is killed")
@pytest.mark.parametrize("point", STAGER_POINTS)
def test_a_stager_is_killed(
    two_stagers: NewScene, ledger_values: dict[str, object], point: str
) -> None:
    """The run carries the other batch through, and the next one stages this one again."""
    scene = two_stagers(**ledger_values)
    run = scene.start_worker(f"{point}:stop")
    victim, other = await_stopped_stagers(scene, run)
    os.kill(victim, signal.SIGKILL)
    os.kill(other, signal.SIGCONT)
    assert run.wait(WORKER_SECONDS) == WAITS
    states = [batch.state for batch in scene.stack.batches()]
    assert states == [State.PLANNED, State.COMMITTED]
    (gone,) = (each for each in attempts(scene) if each.outcome == "failed")
    assert (gone.error_class, gone.remedy, stager(gone)) == ("StagerGone", "alone", victim)
    assert "SIGKILL" in (gone.error_text or "")
    assert scene.work() == 0
    scene.prove()
    assert in_the_lake(scene) == named_in_the_ledger(scene)


@pytest.mark.matrix("a run with stagers is killed")
def test_a_run_killed_at_one_point_after_the_other_gets_through(
    two_stagers: NewScene, ledger_values: dict[str, object]
) -> None:
    """Its stagers end with it, and what they have written is nobody's."""
    scene = two_stagers(40, batch_max_records=100, **ledger_values)
    for point in RUN_POINTS:
        scene.send_twice(60)
        scene.kill_at(point)
        await_ended(all_stagers(scene))
    assert scene.work() == 0
    scene.prove()
    assert set(failures(scene)) == {"SeenMeanwhile"}
    assert in_the_lake(scene) == named_in_the_ledger(scene)


@pytest.mark.matrix("a stager wakes when its run is gone")
@pytest.mark.parametrize("point", ["while-staging", "before-answer"])
def test_a_stager_wakes_when_its_run_is_gone(
    two_stagers: NewScene, ledger_values: dict[str, object], point: str
) -> None:
    """Another run has done its work: it writes nothing more, and ends."""
    scene = two_stagers(**ledger_values)
    run = scene.start_worker(f"{point}:stop")
    stagers = await_stopped_stagers(scene, run)
    run.kill()
    run.wait(WORKER_SECONDS)
    assert scene.work() == 0
    scene.prove()
    for pid in stagers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    await_ended(stagers)
    assert in_the_lake(scene) == named_in_the_ledger(scene)
    scene.prove()


@pytest.mark.matrix("a stager wakes when its run is gone")
@pytest.mark.parametrize("sound_alone", [False, True])
def test_a_stager_wakes_when_some_of_its_files_are_there(
    two_stagers: NewScene, sound_alone: bool
) -> None:
    """Nobody tidies up after it any more: it takes back what appears only now.

    Of sound records alone there is one file, and the key file is written after it.
    """
    scene = two_stagers()
    if sound_alone:
        assert scene.work() == 0
        scene.send_more(400)
    before = all_stagers(scene)
    run = scene.start_worker("half-published:stop")
    stagers = await_stopped_stagers(scene, run, before)
    run.kill()
    run.wait(WORKER_SECONDS)
    assert scene.work() == 0
    for pid in stagers:
        os.kill(pid, signal.SIGCONT)
    await_ended(stagers)
    assert in_the_lake(scene) == named_in_the_ledger(scene)
    scene.prove()


@pytest.mark.matrix("a stager falls silent")
def test_a_stager_that_falls_silent_is_ended(two_stagers: NewScene) -> None:
    """After the time for which a silent worker has its lease: nothing can come of it later."""
    scene = two_stagers(lease_seconds=3)
    run = scene.start_worker("while-staging:stop")
    silent, other = await_stopped_stagers(scene, run)
    os.kill(other, signal.SIGCONT)
    assert run.wait(WORKER_SECONDS) == WAITS
    assert not alive([silent])
    gone = next(each for each in attempts(scene) if each.outcome == "failed")
    assert (gone.error_class, stager(gone)) == ("StagerGone", silent)
    assert "said nothing for 3 s" in (gone.error_text or "")
    assert scene.work() == 0
    scene.prove()
    assert in_the_lake(scene) == named_in_the_ledger(scene)


@pytest.mark.matrix("a stager falls silent")
def test_a_stager_that_stands_still_is_ended(
    two_stagers: NewScene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It says that it is there, and its job does not move on: as long as that may last, and no
    longer. The run carries the other batch through."""
    scene = two_stagers(lease_seconds=3)
    stack = scene.stack
    monkeypatch.setattr(stager_pool, "_STILL_S", 2.0)
    point = tmp_path / "failpoint"
    point.write_text("while-staging:hang")
    monkeypatch.setenv(VARIABLE, f"@{point}")
    worker, held = stack.worker(), list[BatchError]()
    staged = stage_batches(worker, held)
    assert not alive(all_stagers(scene))
    assert len(staged) == 1
    (gone,) = held
    assert isinstance(gone, StagerGone)
    assert re.search(r"has not moved on for \d+ s and was killed", str(gone))
    assert scene.work() == 0
    scene.prove()
    assert in_the_lake(scene) == named_in_the_ledger(scene)


@pytest.mark.matrix("a run with stagers is killed")
def test_a_run_that_is_told_to_end_takes_its_stagers_along(two_stagers: NewScene) -> None:
    """It ends at once, and they see that it is gone, at work or not."""
    scene = two_stagers()
    run = scene.stop_at("begun")
    stagers = all_stagers(scene)
    assert alive(stagers) == stagers
    run.send_signal(signal.SIGTERM)
    run.send_signal(signal.SIGCONT)
    assert run.wait(WORKER_SECONDS) != 0
    await_ended(stagers)
    assert scene.work() == 0
    scene.prove()
    assert in_the_lake(scene) == named_in_the_ledger(scene)


@pytest.mark.matrix("Kafka lost records before they were read")
def test_a_gap_that_a_stager_meets(two_stagers: NewScene) -> None:
    """It is an outcome of the batch, as if the run had met it; the other one is loaded."""
    scene = two_stagers()
    scene.kill_at("begun")
    (planned,) = scene.stack.batches()
    (lost,) = planned.ranges
    settings = scene.stack.settings
    delete_before(settings.bootstrap_servers, settings.topic, {lost.partition: lost.start + 7})
    assert scene.work() == WAITS
    by_state = {batch.state: batch for batch in scene.stack.batches()}
    assert set(by_state) == {State.GAP, State.COMMITTED}
    assert f"{lost.partition}:[{lost.start},{lost.start + 7})" in by_state[State.GAP].note
    assert failures(scene) == ["Gap"]


def failures(scene: Scene) -> list[str | None]:
    """What attempts have failed with, in their order."""
    return [each.error_class for each in attempts(scene) if each.outcome == "failed"]


def stager(attempt: Attempt) -> int | None:
    """The pid of the stager that was at it, if one was."""
    return int(attempt.host.rpartition(":")[2]) if ":" in attempt.host else None


def all_stagers(scene: Scene) -> list[int]:
    """The pids of all that have ever been at a batch."""
    found = (stager(each) for each in attempts(scene))
    return list(dict.fromkeys(pid for pid in found if pid is not None))


def await_stopped_stagers(scene: Scene, run: Forked, before: Collection[int] = ()) -> list[int]:
    """Return when two stagers have stopped at their failpoint: the first batch's one first.

    Two besides those of before.
    """

    def new() -> list[int]:
        return [pid for pid in all_stagers(scene) if pid not in before]

    def both_stopped() -> bool:
        return len(new()) == 2 and all(process_state(pid) == "T" for pid in new())

    scene.await_true(both_stopped, "both stagers have stopped", run)
    return new()


def merge_the_index(scene: Scene) -> None:
    """Put one file in the place of all that the index has."""
    ledger, lake = scene.stack.ledger, scene.stack.worker().lake
    days = [batch.arrival_date for batch in scene.stack.batches()]
    files = live_key_files(ledger, min(days), max(days))
    assert files
    assert replace_key_files(ledger, files, [_copied(ledger, lake, files, "merged")])
