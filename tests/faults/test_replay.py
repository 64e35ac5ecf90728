"""Files that the lake has lost come back from Kafka, as they were, killed anywhere."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from assets.pipeline.audit import compare
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.errors import StagedFileDamaged
from assets.pipeline.failpoints import REBUILD_POINTS, REMAKE_POINTS
from assets.pipeline.reasons import Reason, Rejection
from assets.pipeline.rebuild import back, cancel, rebuild
from assets.pipeline.rebuild_preview import preview, replay_text
from assets.pipeline.remaking import Asked
from assets.pipeline.validate import Judged, Verdict, judge
from orchestration.definitions import definitions
from orchestration.housekeeping.staged import let_go_of_staged
from orchestration.ledger.keys import live_key_files
from orchestration.ledger.rebuilds import RebuildState, Way
from tests.faults.conftest import Scene
from tests.faults.test_rebuild import day_of, loaded_scene
from tests.orchestration.test_letting_go import KEEP, OLD, old_stack, on_disk
from tests.records import Sent, delete_before, value_of
from tests.stack import Stack

NewScene = Callable[..., Scene]

KILLED = "a replay is killed"


def lose(scene: Scene, batch: Batch, *kinds: Kind) -> None:
    """The lake has files of a batch no more: all, or those of these kinds."""
    assert batch.staged is not None
    for file in batch.staged.files:
        if not kinds or file.kind in kinds:
            scene.stack.lake_file(file.path).unlink()


def with_events(scene: Scene) -> list[Batch]:
    """The batches that have a file of events."""
    return [b for b in scene.stack.batches() if b.staged and b.staged.file(Kind.EVENTS)]


def prove(scene: Scene) -> None:
    """Each record once, in ClickHouse as in the lake, row by row; every file is whole."""
    scene.prove()
    stack = scene.stack
    lake = stack.worker().lake
    kinds = [Kind.EVENTS, Kind.DEAD_LETTERS]
    assert compare(stack.client, stack.database, lake, stack.batches(), kinds) == []
    for batch in stack.batches():
        for file in batch.staged.files if batch.staged else ():
            lake.check(file.path, file.bytes, file.sha256)
    assert not [path for path in lake_files(scene) if path.startswith(("remade", "replaced"))]


def lake_files(scene: Scene) -> list[str]:
    """All files of the lake."""
    root = scene.stack.lake_file("")
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_what_the_lake_has_lost_comes_back_as_it_was(new_scene: NewScene) -> None:
    """Files of every kind, with the same balance; also rows that ClickHouse has lost besides.

    Where nothing is lost, nothing is replayed. Brought back, the table is as it was before.
    """
    scene = loaded_scene(new_scene)
    stack, day = scene.stack, day_of(scene)
    lost, damaged, *_ = with_events(scene)
    (rejected,) = [b for b in stack.batches() if b.staged and b.staged.file(Kind.DEAD_LETTERS)]
    assert rejected.batch_id not in (lost.batch_id, damaged.batch_id)
    before = {batch.batch_id: batch.staged for batch in stack.batches()}
    lose(scene, lost)
    lose(scene, rejected)
    assert damaged.staged is not None
    file = damaged.staged.file(Kind.EVENTS)
    assert file is not None
    stack.lake_file(file.path).write_bytes(b"cut off")
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{damaged.batch_id}' "
        "AND _offset % 2 = 0 SETTINGS mutations_sync = 2"
    )
    seen = preview(stack.worker(), day, Way.REPLAY)
    kinds = {each.batch_id: each.kinds for each in seen.to_replay}
    assert kinds == {
        lost.batch_id: (Kind.EVENTS,),
        damaged.batch_id: (Kind.EVENTS,),
        rejected.batch_id: (Kind.DEAD_LETTERS, Kind.DUPLICATES),
    }
    assert all(each.is_whole for each in seen.to_replay)
    assert any("is in Kafka" in line for line in replay_text(seen.to_replay))

    asked = Asked()
    done = rebuild(stack.worker(), day, Way.REPLAY, asked)
    assert (done.state, done.rows, asked.left) == (RebuildState.SWAPPED, 120, {})
    prove(scene)
    for batch in stack.batches():
        was = before[batch.batch_id]
        assert batch.staged is not None
        assert was is not None
        assert (batch.staged.balances, batch.staged.fingerprints) == (
            was.balances,
            was.fingerprints,
        )
    assert rebuild(stack.worker(), day, Way.REPLAY).state is RebuildState.CANCELLED
    assert back(stack.worker(), day).state is RebuildState.RETURNED
    found = stack.rows("SELECT count() FROM {database}.events")
    assert found == [(120 - file.rows // 2,)]
    assert rebuild(stack.worker(), day, Way.REPLAY, Asked(all_files=True)).rows == 120
    prove(scene)


def test_what_has_expired_keeps_its_rows(new_scene: NewScene) -> None:
    """The batch is named, with what Kafka has no more; the others are replayed."""
    scene = loaded_scene(new_scene)
    stack, day = scene.stack, day_of(scene)
    first, other, *_ = with_events(scene)
    lose(scene, first, Kind.EVENTS)
    lose(scene, other, Kind.EVENTS)
    range_ = first.ranges[0]
    topic = stack.settings.topic
    delete_before(stack.kafka, topic, {range_.partition: range_.start + 3})
    (expired,) = [b for b in preview(stack.worker(), day, Way.REPLAY).to_replay if not b.is_whole]
    assert expired.batch_id == first.batch_id
    gone = f"{range_.partition}:[{range_.start},{range_.start + 3}) of {range_} has expired"
    assert any(gone in line for line in replay_text([expired]))
    assert scene.tidemark("backfill", "replay", str(day), "--preview") == 0
    assert scene.tidemark("backfill", "replay", str(day)) == 1
    scene.prove()
    rows = stack.rows("SELECT count() FROM {database}.events")
    assert rows == [(120,)]
    lake = stack.worker().lake
    findings = compare(stack.client, stack.database, lake, stack.batches(), [Kind.EVENTS])
    assert [finding.batch_id for finding in findings] == [first.batch_id]
    assert "is not in the lake" in findings[0].text

    # Nor its rows: the date stays as it is, and the replay can be given up.
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{first.batch_id}' "
        "AND _offset % 2 = 0 SETTINGS mutations_sync = 2"
    )
    lose(scene, with_events(scene)[1], Kind.EVENTS)
    with pytest.raises(StagedFileDamaged, match="neither the lake nor Kafka"):
        rebuild(stack.worker(), day, Way.REPLAY)
    assert cancel(stack.worker(), day).state is RebuildState.CANCELLED
    assert not [path for path in lake_files(scene) if path.startswith(("remade", "replaced"))]


def test_what_would_come_out_otherwise_is_left(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of today rejects what was an event: its row stays, and no balance changes."""
    scene = loaded_scene(new_scene)
    stack, day = scene.stack, day_of(scene)
    batch = with_events(scene)[0]
    lose(scene, batch, Kind.EVENTS)
    before = lake_files(scene)

    def strict(values: pa.BinaryArray) -> Judged:
        found = judge(values)
        verdicts = found.verdicts.copy()
        row = int(found.rows[0])
        verdicts[row] = Verdict.REJECTED
        return replace(
            found,
            verdicts=verdicts,
            rejections={**found.rejections, row: Rejection(Reason.WRONG_TYPE, "strict")},
            rows=found.rows[1:],
            columns=found.columns.slice(1),
            uuids=np.ascontiguousarray(found.uuids[1:]),
        )

    with monkeypatch.context() as today:
        today.setattr("assets.pipeline.stage.judge", strict)
        asked = Asked()
        done = rebuild(stack.worker(), day, Way.REPLAY, asked)
    assert done.state is RebuildState.CANCELLED
    assert "would not come out as it was loaded" in asked.left[batch.batch_id]
    assert lake_files(scene) == before
    scene.prove()
    assert rebuild(stack.worker(), day, Way.REPLAY).state is RebuildState.SWAPPED
    prove(scene)


def test_keys_that_are_lost_with_the_file_come_back(new_scene: NewScene) -> None:
    """An event that is sent again after that is a duplicate, as it would have been."""
    scene = loaded_scene(new_scene)
    stack, day = scene.stack, day_of(scene)
    for batch in with_events(scene):
        lose(scene, batch, Kind.EVENTS)
    for key_file in live_key_files(stack.ledger, day, day):
        stack.lake_file(key_file.path).unlink()
    assert rebuild(stack.worker(), day, Way.REPLAY).state is RebuildState.SWAPPED
    prove(scene)
    scene.stored += stack.send(Sent(value_of(7), 0))
    scene.delivered = replace(scene.delivered, duplicate=scene.delivered.duplicate + 1)
    assert scene.work() == 0
    prove(scene)


@pytest.mark.matrix(KILLED)
def test_a_replay_killed_at_one_point_after_the_other_gets_through(
    new_scene: NewScene, ledger_values: dict[str, object]
) -> None:
    """Live batches are loaded in between."""
    scene = loaded_scene(new_scene, **ledger_values)
    day = str(day_of(scene))
    for batch in with_events(scene):
        lose(scene, batch)
    points = [*REMAKE_POINTS[:2], *(p for p in REBUILD_POINTS if "return" not in p)]
    points += REMAKE_POINTS[2:4]
    for point in points:
        code = scene.tidemark("backfill", "replay", day, failpoint=point)
        assert code == -signal.SIGKILL, point
        scene.send_more(5)
        assert scene.work_when_free() == 0
    assert scene.tidemark("backfill", "replay", day) == 0
    prove(scene)


def test_a_date_is_replayed_from_dagster(
    new_scene: NewScene, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run that only looks observes what is lost and materializes nothing."""
    scene = loaded_scene(new_scene)
    day, batch = str(day_of(scene)), with_events(scene)[0]
    lose(scene, batch, Kind.EVENTS)
    job = definitions(scene.stack.settings).resolve_implicit_global_asset_job_def()
    key = dg.AssetKey("replayed_events")
    look = {"ops": {"replayed_events": {"config": {"preview": True}}}}
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        told = []
        for run_config in (look, {}):
            ran = job.execute_in_process(
                instance=instance, partition_key=day, asset_selection=[key], run_config=run_config
            )
            assert ran.success
            told.append(ran.asset_materializations_for_node("replayed_events"))
        (seen,) = instance.fetch_observations(key, limit=5).records
    assert seen.asset_observation is not None
    assert f"batch {batch.batch_id}, events: can be" in (seen.asset_observation.description or "")
    found = seen.asset_observation.metadata
    assert (found["batches"].value, found["expired"].value) == (1, 0)
    assert batch.batch_id in str(found["found"].value)
    looked, (done,) = told
    assert looked == []
    assert done.metadata["dagster/partition_row_count"].value == 120
    prove(scene)


def test_what_housekeeping_let_go_of_is_not_lost(new_stack: Callable[..., Stack]) -> None:
    """It is not replayed, nor with all files; its rows stay when another file is."""
    stack = old_stack(new_stack)
    let_go_of_staged(stack.worker(), KEEP)
    assert on_disk(stack, "events") == set()
    assert preview(stack.worker(), OLD, Way.REPLAY).to_replay == ()
    assert rebuild(stack.worker(), OLD, Way.REPLAY).state is RebuildState.CANCELLED
    before = stack.rows("SELECT _offset, _run_id FROM {database}.events ORDER BY _offset")
    (letters,) = on_disk(stack, "dead_letters")
    stack.lake_file(f"dead_letters/arrival_date={OLD}/{letters}").unlink()
    asked = Asked(all_files=True)
    done = rebuild(stack.worker("replayer"), OLD, Way.REPLAY, asked)
    assert (done.state, asked.left) == (RebuildState.SWAPPED, {})
    assert stack.rows("SELECT _offset, _run_id FROM {database}.events ORDER BY _offset") == before
    assert on_disk(stack, "events") == on_disk(stack, "duplicates") == set()
    assert len(on_disk(stack, "dead_letters")) == 1
    lake, kinds = stack.worker().lake, [Kind.DEAD_LETTERS]
    assert compare(stack.client, stack.database, lake, stack.batches(), kinds) == []
