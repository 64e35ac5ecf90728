"""A date rebuilt from the lake, beside live batches, killed anywhere: each record stays once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import date, timedelta

import dagster as dg
import pytest

from assets.pipeline import rebuild as rebuilding
from assets.pipeline.audit import reprove
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.errors import BatchError, StagedFileDamaged
from assets.pipeline.failpoints import REBUILD_POINTS
from assets.pipeline.rebuild import back, cancel, preview, rebuild
from orchestration.definitions import definitions
from orchestration.ledger.rebuilds import RebuildState, all_rebuilds, last_rebuild
from tests.faults.conftest import Scene

NewScene = Callable[..., Scene]

KILLED = "a rebuild is killed"
PAUSED = "a paused rebuild wakes"


def day_of(scene: Scene) -> date:
    """The one date of the scene's batches."""
    (day,) = {batch.arrival_date for batch in scene.stack.batches()}
    return day


def loaded_scene(new_scene: NewScene, **values: object) -> Scene:
    """Several loaded batches of one date."""
    scene = new_scene(120, batch_max_records=60, **values)
    assert scene.work() == 0
    return scene


def harm(scene: Scene) -> Batch:
    """Somebody deletes a part of one batch and alters another; gives the first."""
    one, other, *_ = scene.stack.batches()
    for change in (
        f"DELETE WHERE _batch_id = '{one.batch_id}' AND _offset % 2 = 0",
        f"UPDATE ip = 'nobody' WHERE _batch_id = '{other.batch_id}'",
    ):
        scene.stack.client.command(
            f"ALTER TABLE {scene.stack.database}.events {change} SETTINGS mutations_sync = 2"
        )
    return one


def wrong(scene: Scene) -> set[str]:
    """The batches of which ClickHouse does not hold exactly what was staged."""
    findings = reprove(
        scene.stack.client, scene.stack.database, scene.stack.batches(), [Kind.EVENTS]
    )
    return {str(finding.batch_id) for finding in findings}


def altered(scene: Scene) -> int:
    """Rows that somebody altered."""
    rows = scene.stack.rows("SELECT count() FROM {database}.events WHERE ip = 'nobody'")
    return int(rows[0][0])


def test_a_rebuilt_date_is_as_it_was_staged_and_can_be_brought_back(new_scene: NewScene) -> None:
    """What was lost or altered is mended, by rows that name the rebuild; nothing else changes.

    Brought back, the date is as it was before, and has what was loaded since.
    """
    scene = loaded_scene(new_scene)
    day, harmed = day_of(scene), harm(scene)
    seen = preview(scene.stack.worker(), day)
    assert (seen.rows, seen.rows_now < seen.rows, seen.damaged) == (120, True, {})
    assert wrong(scene) == {harmed.batch_id}
    done = rebuild(scene.stack.worker("rebuilder"), day)
    assert (done.state, done.rows) == (RebuildState.SWAPPED, 120)
    scene.prove()
    assert altered(scene) == 0
    assert scene.stack.rows("SELECT DISTINCT _run_id FROM {database}.events") == [("rebuilder",)]

    scene.send_more(10)
    assert scene.work() == 0
    scene.prove()
    assert back(scene.stack.worker(), day).state is RebuildState.RETURNED
    assert wrong(scene) == {harmed.batch_id}
    assert altered(scene) > 0
    with pytest.raises(BatchError, match="is returned: only what was swapped"):
        back(scene.stack.worker(), day)
    assert rebuild(scene.stack.worker(), day).rows == 130
    scene.prove()


@pytest.mark.matrix(KILLED)
def test_a_rebuild_killed_at_one_point_after_the_other_gets_through(
    new_scene: NewScene, ledger_values: dict[str, object]
) -> None:
    """Live batches are loaded in between; the way back is killed as well."""
    scene = loaded_scene(new_scene, **ledger_values)
    day = str(day_of(scene))
    harm(scene)
    for point in REBUILD_POINTS[:-1]:
        assert scene.tidemark("backfill", "rebuild", day, failpoint=point) == -signal.SIGKILL
        scene.send_more(5)
        assert scene.work_when_free() == 0
    assert scene.tidemark("backfill", "rebuild", day) == 0
    scene.prove()
    (done,) = all_rebuilds(scene.stack.ledger, scene.stack.settings.topic)
    assert (done.state, done.rows) == (RebuildState.SWAPPED, 120 + 5 * 4)

    scene.send_more(5)
    assert scene.work_when_free() == 0
    point = REBUILD_POINTS[-1]
    assert scene.tidemark("backfill", "back", day, failpoint=point) == -signal.SIGKILL
    scene.send_more(5)
    assert scene.work_when_free() == 0
    assert scene.tidemark("backfill", "rebuild", day) == 1
    assert scene.tidemark("backfill", "back", day) == 0
    assert len(wrong(scene)) == 1
    assert scene.tidemark("backfill", "rebuild", day) == 0
    scene.prove()


@pytest.mark.matrix(PAUSED)
@pytest.mark.parametrize("point", ["rebuild-kept", "rebuild-swapping"])
def test_a_paused_rebuild_takes_nothing_away(new_scene: NewScene, point: str) -> None:
    """It wakes without its lease, when a batch was loaded meanwhile: it does nothing more."""
    scene = loaded_scene(new_scene)
    day = day_of(scene)
    paused = scene.start_tidemark("backfill", "rebuild", str(day), failpoint=f"{point}:stop")
    scene.await_stop(paused)
    with scene.stack.ledger.begin() as connection:
        connection.exec_driver_sql("UPDATE leases SET expires_at = 0")
    scene.send_more(10)
    assert scene.work() == 0
    assert rebuild(scene.stack.worker(), day).state is RebuildState.SWAPPED
    scene.prove()
    assert scene.wake(paused) == 1
    scene.prove()


def test_what_is_loaded_while_it_fills_is_in_it(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a batch whose worker died after its insert, before the ledger knew."""
    scene = loaded_scene(new_scene)
    settle = rebuilding.load_batches

    def meanwhile(*given: object) -> list[Batch]:
        monkeypatch.undo()
        scene.send_more(10)
        assert scene.work() == 0
        scene.send_more(10)
        scene.kill_at("after-send")
        return settle(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuilding, "load_batches", meanwhile)
    assert rebuild(scene.stack.worker(), day_of(scene)).rows == 140
    assert scene.work() == 0
    scene.prove()


def test_what_a_rebuild_refuses(new_scene: NewScene) -> None:
    """Rows that nobody has loaded, a damaged file; the table stays as it is, and it may go on.

    It can be cancelled until it is swapped in, and nothing is left of it then.
    """
    scene = loaded_scene(new_scene)
    stack, day, batch = scene.stack, day_of(scene), scene.stack.batches()[1]
    assert scene.tidemark("backfill", "cancel", str(day)) == 1
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    path = stack.lake_file(file.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert list(preview(stack.worker(), day).damaged) == [batch.batch_id]
    with pytest.raises(StagedFileDamaged, match="is not what was staged"):
        rebuild(stack.worker(), day)
    scene.prove()
    assert stack.rows("SELECT count() FROM {database}.events_shadow") == [(60,)]
    assert cancel(stack.worker(), day).state is RebuildState.CANCELLED
    assert stack.rows("SELECT count() FROM {database}.events_shadow") == [(0,)]
    path.write_bytes(whole)

    # Rows of another Tidemark's batches, say, that has the same database.
    stack.client.command(
        f"INSERT INTO {stack.database}.events (uuid, arrival_date, _batch_id) "
        f"VALUES (generateUUIDv4(), '{day}', 'strange')"
    )
    assert preview(stack.worker(), day).strangers == {"strange": 1}
    with pytest.raises(BatchError, match=r"1 rows of batches that are not loaded.*strange: 1"):
        rebuild(stack.worker(), day)
    assert scene.tidemark("backfill", "rebuild", str(day), "--preview") == 0
    assert scene.tidemark("backfill", "rebuild", str(day), "--drop-strangers") == 0
    scene.prove()
    assert scene.tidemark("backfill", "cancel", str(day)) == 1
    assert scene.tidemark("backfill", "list", "--json") == 0
    back(stack.worker(), day)
    assert preview(stack.worker(), day).strangers == {"strange": 1}

    # Cancelled when a copy was kept aside: that is not what an earlier rebuild has replaced.
    drop = ("--drop-strangers",)
    code = scene.tidemark("backfill", "rebuild", str(day), *drop, failpoint="rebuild-kept")
    assert code == -signal.SIGKILL
    assert cancel(stack.worker(), day).state is RebuildState.RETURNED
    with pytest.raises(BatchError, match="is returned"):
        back(stack.worker(), day)
    rebuild(stack.worker(), day, drop_strangers=True)

    # What was replaced is not let go of because the table has another form now.
    stack.client.command(f"ALTER TABLE {stack.database}.events ADD INDEX more ip TYPE minmax")
    with pytest.raises(BatchError, match="lets go of them"):
        rebuild(stack.worker(), day)
    stack.client.command(f"ALTER TABLE {stack.database}.events DROP INDEX more")

    # A date of which there is nothing is rebuilt to nothing.
    none = day - timedelta(days=1)
    assert rebuild(stack.worker(), none).rows == 0
    stack.client.command(
        f"INSERT INTO {stack.database}.events (uuid, arrival_date, _batch_id) "
        f"VALUES (generateUUIDv4(), '{none}', 'strange')"
    )
    assert rebuild(stack.worker(), none, drop_strangers=True).rows == 0
    assert preview(stack.worker(), none).strangers == {}


def test_a_date_is_rebuilt_from_dagster(
    new_scene: NewScene, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Materializing a partition of `rebuilt_events` rebuilds that date."""
    scene = loaded_scene(new_scene)
    day = day_of(scene)
    harm(scene)
    made = definitions(scene.stack.settings)
    job = made.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        ran = job.execute_in_process(
            instance=instance,
            partition_key=str(day),
            asset_selection=[dg.AssetKey("rebuilt_events")],
        )
    assert ran.success
    (told,) = ran.asset_materializations_for_node("rebuilt_events")
    assert told.metadata["dagster/partition_row_count"].value == 120
    found = last_rebuild(scene.stack.ledger, scene.stack.settings.topic, day)
    assert found is not None
    assert found.run_id == ran.run_id
    scene.prove()
