"""A date rebuilt from the lake, beside live batches, killed anywhere: each record stays once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from assets.pipeline import rebuild as rebuilding
from assets.pipeline.audit import reprove
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.errors import BatchError, StagedFileDamaged
from assets.pipeline.failpoints import REBUILD_POINTS
from assets.pipeline.rebuild import back, cancel, rebuild
from assets.pipeline.rebuild_preview import preview
from assets.pipeline.remaking import Asked
from assets.pipeline.staging import stage_batches
from orchestration.definitions import definitions
from orchestration.ledger.batches import load_again
from orchestration.ledger.rebuilds import RebuildState, all_rebuilds, last_rebuild
from tests.capture_api.conftest import until
from tests.faults.conftest import Scene
from tests.faulty_proxy import Fault, FaultyProxy
from tests.records import Sent, value_of
from tests.stack import Place, Stack

NewScene = Callable[..., Scene]
NewStack = Callable[..., Stack]

KILLED = "a rebuild is killed"
PAUSED = "a paused rebuild wakes"
LATE = "a rebuild's swap arrives late"


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


def copies(scene: Scene) -> list[Sequence[object]]:
    """What was to take a partition's place and is there still."""
    return scene.stack.rows(
        "SELECT name FROM system.tables WHERE database = '{database}' AND name LIKE '%swap%'"
    )


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
    points = [point for point in REBUILD_POINTS if "return" not in point]
    for point in points:
        assert scene.tidemark("backfill", "rebuild", day, failpoint=point) == -signal.SIGKILL
        scene.send_more(5)
        assert scene.work_when_free() == 0
    assert scene.tidemark("backfill", "rebuild", day) == 0
    scene.prove()
    (done,) = all_rebuilds(scene.stack.ledger, scene.stack.settings.topic)
    assert (done.state, done.rows) == (RebuildState.SWAPPED, 120 + 5 * len(points))
    assert copies(scene) == []

    for point in REBUILD_POINTS[len(points) :]:
        scene.send_more(5)
        assert scene.work_when_free() == 0
        assert scene.tidemark("backfill", "back", day, failpoint=point) == -signal.SIGKILL
    scene.send_more(5)
    assert scene.work_when_free() == 0
    assert scene.tidemark("backfill", "rebuild", day) == 1
    assert scene.tidemark("backfill", "back", day) == 0
    assert len(wrong(scene)) == 1
    assert scene.tidemark("backfill", "rebuild", day) == 0
    scene.prove()
    assert copies(scene) == []


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


@pytest.mark.matrix(LATE, PAUSED)
@pytest.mark.parametrize("point", ["rebuild-keeps", "rebuild-swaps", "rebuild-returns"])
def test_a_rebuild_that_was_paused_before_its_command(new_scene: NewScene, point: str) -> None:
    """It has asked for its lease, and sleeps; what is loaded by then it cannot take away."""
    scene = loaded_scene(new_scene)
    day, command = day_of(scene), "rebuild"
    if point == "rebuild-returns":
        rebuild(scene.stack.worker(), day)
        command = "back"
    paused = scene.start_tidemark("backfill", command, str(day), failpoint=f"{point}:stop")
    scene.await_stop(paused)
    scene.let_the_lease_run_out()
    scene.send_more(10)
    assert scene.work() == 0
    scene.prove()
    assert scene.wake(paused) == 1
    scene.prove()
    assert scene.tidemark("backfill", command, str(day)) == 0
    scene.prove()


@pytest.mark.matrix(LATE, KILLED)
@pytest.mark.parametrize("moved", ["rows", "nothing"])
def test_a_swap_that_arrives_when_its_worker_is_dead(
    proxy: FaultyProxy, new_scene: NewScene, moved: str
) -> None:
    """The server was to get it, and gets it when a batch was loaded that it would take away."""
    scene = new_scene(120, batch_max_records=60, clickhouse_url=proxy.url)
    if moved == "rows":
        assert scene.work() == 0
        day = day_of(scene)
    else:
        stage_batches(scene.stack.worker())
        day = day_of(scene)
        make_tables(scene.stack.client, scene.stack.database)
        scene.stack.client.command(
            f"INSERT INTO {scene.stack.database}.events (uuid, arrival_date, _batch_id) "
            f"VALUES (generateUUIDv4(), '{day}', 'strange')"
        )
    swap = f"ALTER TABLE {scene.stack.database}.events ".encode()
    proxy.plan = lambda exchange: Fault.HOLD if swap in exchange.body else Fault.NONE
    rebuilder = scene.start_tidemark("backfill", "rebuild", str(day), "--drop-strangers")
    scene.await_true(proxy.held, "its swap was sent", rebuilder)
    rebuilder.kill()
    rebuilder.wait()
    scene.send_more(10)
    assert scene.work_when_free() == 0
    (late,) = proxy.held()
    proxy.let_go()
    until(lambda: late.answered is not None, "the swap was answered")
    assert b"UNKNOWN_TABLE" in late.answer
    if moved == "rows":
        scene.prove()
    else:
        assert preview(scene.stack.worker(), day).strangers == {"strange": 1}
    assert scene.tidemark("backfill", "rebuild", str(day), "--drop-strangers") == 0
    scene.prove()
    commands = (b"DROP TABLE", b"DROP PARTITION", b"MOVE PARTITION", b"REPLACE PARTITION")
    dropped = [e for e in proxy.exchanges if any(command in e.body for command in commands)]
    assert len(dropped) > 3
    assert all("max_partition_size_to_drop=0" in each.target for each in dropped)


def test_what_is_loaded_while_it_fills_is_in_it(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a batch whose worker died after its insert, before the ledger knew."""
    scene = loaded_scene(new_scene)
    free = rebuilding._when_free

    def meanwhile(*given: object) -> object:
        monkeypatch.undo()
        scene.send_more(10)
        assert scene.work() == 0
        scene.send_more(10)
        scene.kill_at("after-send")
        return free(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuilding, "_when_free", meanwhile)
    assert rebuild(scene.stack.worker(), day_of(scene)).rows == 140
    assert scene.work() == 0
    scene.prove()


def test_a_rebuild_leaves_what_else_is_staged_to_the_micro_batches(new_stack: NewStack) -> None:
    """It loads nothing of its own date that is not begun, nor fails by another date's trouble."""
    stack = new_stack(batch_max_records=10)
    stack.make_topic(1, **{"message.timestamp.type": "CreateTime", "retention.ms": "-1"})
    days = [datetime.now(UTC) - timedelta(days=days) for days in (2, 1)]
    day = days[1].date()

    def send(numbers: range, at: datetime) -> list[Place]:
        return stack.send(*(Sent(value_of(n), 0, int(at.timestamp() * 1000)) for n in numbers))

    sent = [*send(range(10), days[0]), *send(range(10, 20), days[1])]
    stack.run()
    send(range(20, 30), days[1])
    stack.run()
    other, *_ = stack.batches()
    with stack.worker().lease() as lease:  # as after a repair, or an insert in doubt
        load_again(stack.ledger, lease, other.batch_id, "")
    assert other.staged is not None
    for file in other.staged.files:
        stack.lake_file(file.path).unlink()
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{other.batch_id}' "
        "SETTINGS mutations_sync = 2"
    )
    sent += send(range(30, 40), days[1])
    stage_batches(stack.worker())
    before = {batch.batch_id: batch.state for batch in stack.batches()}
    assert sorted(before.values()) == ["committed", "committed", "loading", "staged"]
    assert rebuild(stack.worker(), day).rows == 20
    assert {batch.batch_id: batch.state for batch in stack.batches()} == before


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
    with pytest.raises(StagedFileDamaged, match="is not what was staged") as refused:
        rebuild(stack.worker(), day)
    assert f"batch {batch.batch_id} cannot be rebuilt" in str(refused.value)
    assert f"`tidemark backfill cancel {day}`" in str(refused.value)
    assert f"`tidemark backfill replay {day} --preview`" in str(refused.value)
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
    rebuild(stack.worker(), day, asked=Asked(drop_strangers=True))

    # What was replaced is not let go of because the table has another form now.
    stack.client.command(f"ALTER TABLE {stack.database}.events ADD INDEX more ip TYPE minmax")
    with pytest.raises(BatchError, match="lets go of them"):
        rebuild(stack.worker(), day)
    stack.client.command(f"ALTER TABLE {stack.database}.events DROP INDEX more")

    # Of a date of which there is nothing, nothing is rebuilt; what is strange there goes.
    none = day - timedelta(days=1)
    nothing = rebuild(stack.worker(), none)
    assert (nothing.state, nothing.rows) == (RebuildState.CANCELLED, None)
    stack.client.command(
        f"INSERT INTO {stack.database}.events (uuid, arrival_date, _batch_id) "
        f"VALUES (generateUUIDv4(), '{none}', 'strange')"
    )
    assert rebuild(stack.worker(), none, asked=Asked(drop_strangers=True)).rows == 0
    assert preview(stack.worker(), none).strangers == {}


def test_a_date_is_rebuilt_from_dagster(
    new_scene: NewScene, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Materializing a partition of `rebuilt_events` rebuilds that date; an empty one says so."""
    scene = loaded_scene(new_scene)
    day = day_of(scene)
    harm(scene)
    made = definitions(scene.stack.settings)
    job = made.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        nothing, ran = (
            job.execute_in_process(
                instance=instance,
                partition_key=str(date),
                asset_selection=[dg.AssetKey("rebuilt_events")],
            )
            for date in (day - timedelta(days=1), day)
        )
    assert nothing.success
    assert ran.success
    (told,) = nothing.asset_materializations_for_node("rebuilt_events")
    assert set(told.metadata) == {"note"}
    assert "nothing to rebuild: no batch" in str(told.metadata["note"].value)
    (told,) = ran.asset_materializations_for_node("rebuilt_events")
    assert told.metadata["dagster/partition_row_count"].value == 120
    found = last_rebuild(scene.stack.ledger, scene.stack.settings.topic, day)
    assert found is not None
    assert found.run_id == ran.run_id
    scene.prove()
