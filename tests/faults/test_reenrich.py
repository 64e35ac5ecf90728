"""A date's staged files made again with today's code, killed anywhere: each record stays once."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from assets.pipeline import compare_rows, remaking
from assets.pipeline import rebuild as rebuild_module
from assets.pipeline.audit import compare
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.columns import EVENTS
from assets.pipeline.enrich import enrich
from assets.pipeline.errors import BatchError, StagedFileDamaged
from assets.pipeline.failpoints import REBUILD_POINTS, REMAKE_POINTS
from assets.pipeline.rebuild import back, cancel, rebuild
from assets.pipeline.rebuild_preview import preview
from assets.pipeline.shadow import PREVIOUS
from assets.pipeline.version import TRANSFORM_VERSION
from orchestration.definitions import definitions
from orchestration.housekeeping import replaced, tally
from orchestration.housekeeping.replaced import let_go_of_replaced
from orchestration.ledger.audits import HOLDS, audits_of
from orchestration.ledger.rebuilds import RebuildState, Way, all_rebuilds
from orchestration.ledger.remakes import dates_with_remakes
from orchestration.reconcile import everything, reconcile
from tests.faults.conftest import Scene
from tests.faults.test_rebuild import day_of

NewScene = Callable[..., Scene]

KILLED = "a re-enrich is killed"
PAUSED = "a paused re-enrich wakes"

AGAIN = ("backfill", "re-enrich")


def by_older_code(parsed: pa.Table) -> pa.Table:
    """What enrichment once made of rows."""
    rows = enrich(parsed)
    at = rows.schema.get_field_index("lib")
    return rows.set_column(at, rows.schema.field(at), pa.array(["older"] * len(rows)))


@pytest.fixture
def old_scene(new_scene: NewScene, monkeypatch: pytest.MonkeyPatch) -> NewScene:
    """Makes scenes with several batches of one date, loaded by older code."""

    def make(**values: object) -> Scene:
        scene = new_scene(120, batch_max_records=60, **values)
        with monkeypatch.context() as older:
            older.setattr("assets.pipeline.stage.enrich", by_older_code)
            older.setattr("assets.pipeline.registering.TRANSFORM_VERSION", "0")
            scene.stack.run()
        assert made_by(scene) == {("older", 0): 120}
        return scene

    return make


def made_by(scene: Scene) -> dict[tuple[str, int], int]:
    """How many rows ClickHouse has of what each code made, and of which generation."""
    rows = scene.stack.rows("SELECT lib, _generation, count() FROM {database}.events GROUP BY 1, 2")
    return {(lib, generation): count for lib, generation, count in rows}


def in_lake(scene: Scene) -> Counter[tuple[str, int]]:
    """The same of all files of events, as whoever reads that folder finds them."""
    found: Counter[tuple[str, int]] = Counter()
    for path in sorted(Path(scene.stack.settings.lake, "events").rglob("*.parquet")):
        table = pq.read_table(path, columns=["lib", "_generation"], partitioning=None)
        found.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return found


def prove(scene: Scene, wanted: dict[tuple[str, int], int]) -> None:
    """Each record once, made as it is to be, in ClickHouse as in the lake, row by row."""
    scene.prove()
    stack = scene.stack
    assert made_by(scene) == wanted
    assert in_lake(scene) == wanted
    lake = stack.worker().lake
    assert compare(stack.client, stack.database, lake, stack.batches(), [Kind.EVENTS]) == []


def with_events(scene: Scene) -> list[Batch]:
    """The batches that have a file of events."""
    return [b for b in scene.stack.batches() if b.staged and b.staged.file(Kind.EVENTS)]


def kept_files(scene: Scene) -> list[str]:
    """Files of the lake that do not count, or not yet."""
    lake = Path(scene.stack.settings.lake)
    return sorted(
        path.name for name in ("remade", "replaced") for path in (lake / name).rglob("*.parquet")
    )


def test_a_date_is_made_again_with_todays_code_and_can_be_brought_back(
    old_scene: NewScene,
) -> None:
    """What would change is shown first; what was loaded since stays, whichever way it goes.

    Where nothing would change, nothing is rebuilt.
    """
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)
    before = {batch.batch_id: batch.staged for batch in with_events(scene)}
    seen = preview(stack.worker(), day, Way.REENRICH)
    assert seen.changes is not None
    assert (seen.rows, seen.changes.rows, seen.damaged) == (120, 120, {})
    (column,) = seen.changes.columns.values()
    assert set(seen.changes.columns) == {"lib"}
    assert (column.rows, len(column.examples)) == (120, 3)
    assert {(each.before, each.after) for each in column.examples} == {("older", "web")}
    assert scene.tidemark(*AGAIN, str(day), "--preview") == 0
    prove(scene, {("older", 0): 120})
    assert all_rebuilds(stack.ledger, stack.settings.topic) == []

    done = rebuild(stack.worker("enricher"), day, Way.REENRICH)
    assert (done.state, done.rows, done.generation) == (RebuildState.SWAPPED, 120, 1)
    prove(scene, {("web", 1): 120})
    for batch in with_events(scene):
        assert (batch.generation, batch.code_version) == (1, TRANSFORM_VERSION)
        staged = before[batch.batch_id]
        assert batch.staged is not None
        assert staged is not None
        assert batch.staged.balances == staged.balances
        assert batch.staged.fingerprints == staged.fingerprints
    mirrored = stack.rows(
        "SELECT DISTINCT generation, endsWith(staged_file, '-r1.parquet') FROM {database}.batches "
        "FINAL WHERE ok > 0"
    )
    assert mirrored == [(1, True)]
    preview_again = preview(stack.worker(), day, Way.REENRICH).changes
    assert not preview_again
    assert rebuild(stack.worker(), day, Way.REENRICH).state is RebuildState.CANCELLED

    scene.send_more(10)
    assert scene.work() == 0
    prove(scene, {("web", 1): 120, ("web", 0): 10})
    assert back(stack.worker(), day).state is RebuildState.RETURNED
    prove(scene, {("older", 0): 120, ("web", 0): 10})
    assert {batch.code_version for batch in with_events(scene)} == {"0", TRANSFORM_VERSION}
    assert kept_files(scene) == []
    assert rebuild(stack.worker(), day, Way.REENRICH).rows == 130
    prove(scene, {("web", 1): 120, ("web", 0): 10})


@pytest.mark.matrix(KILLED)
def test_a_re_enrich_killed_at_one_point_after_the_other_gets_through(
    old_scene: NewScene, ledger_values: dict[str, object]
) -> None:
    """Live batches are loaded in between; the way back is killed as well."""
    scene = old_scene(**ledger_values)
    day = str(day_of(scene))
    points = [*REMAKE_POINTS[:2], *(p for p in REBUILD_POINTS if "return" not in p)]
    points += REMAKE_POINTS[2:4]
    for point in points:
        assert scene.tidemark(*AGAIN, day, failpoint=point) == -signal.SIGKILL, point
        scene.send_more(5)
        assert scene.work_when_free() == 0
    assert scene.tidemark(*AGAIN, day) == 0
    prove(scene, {("web", 1): 120, ("web", 0): 5 * len(points)})
    assert scene.tidemark("backfill", "list", "--json") == 0


@pytest.mark.matrix(KILLED)
def test_the_way_back_of_a_re_enrich_killed_at_one_point_after_the_other_gets_through(
    old_scene: NewScene, ledger_values: dict[str, object]
) -> None:
    """Until it says that it is returned, it can be said again; what was loaded since stays."""
    scene = old_scene(**ledger_values)
    day = str(day_of(scene))
    assert scene.tidemark(*AGAIN, day) == 0
    points = [*(p for p in REBUILD_POINTS if "return" in p), "remakes-placed", REMAKE_POINTS[-1]]
    for point in points:
        assert scene.tidemark("backfill", "back", day, failpoint=point) == -signal.SIGKILL, point
        scene.send_more(5)
        assert scene.work_when_free() == 0
    assert scene.tidemark("backfill", "back", day) == 1
    let_go_of_replaced(scene.stack.worker(), 7)
    prove(scene, {("older", 0): 120, ("web", 0): 5 * len(points)})
    assert kept_files(scene) == []


@pytest.mark.matrix(PAUSED)
@pytest.mark.parametrize("point", ["remade", "remakes-placed", "remakes-used"])
def test_a_paused_re_enrich_takes_nothing_away(old_scene: NewScene, point: str) -> None:
    """It wakes when another has done its work, and brought the old files back: they stay."""
    scene = old_scene()
    day = day_of(scene)
    paused = scene.start_tidemark(*AGAIN, str(day), failpoint=f"{point}:stop")
    scene.await_stop(paused)
    with scene.stack.ledger.begin() as connection:
        connection.exec_driver_sql("UPDATE leases SET expires_at = 0")
    rebuild(scene.stack.worker(), day, Way.REENRICH)
    assert back(scene.stack.worker(), day).state is RebuildState.RETURNED
    prove(scene, {("older", 0): 120})
    assert scene.wake(paused) == (1 if point != "remakes-used" else 0)
    prove(scene, {("older", 0): 120})


def test_what_a_re_enrich_refuses_and_how_it_is_given_up(old_scene: NewScene) -> None:
    """A damaged file, another way that was begun: the table and the files stay as they are."""
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)
    batch = with_events(scene)[-1]
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    path = stack.lake_file(file.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert list(preview(stack.worker(), day, Way.REENRICH).damaged) == [batch.batch_id]
    with pytest.raises(StagedFileDamaged, match="is not what was staged"):
        rebuild(stack.worker(), day, Way.REENRICH)
    path.write_bytes(whole)
    assert len(kept_files(scene)) == 1
    with pytest.raises(BatchError, match="`tidemark backfill re-enrich"):
        rebuild(stack.worker(), day)
    assert cancel(stack.worker(), day).state is RebuildState.CANCELLED
    assert kept_files(scene) == []
    prove(scene, {("older", 0): 120})


def test_old_files_are_kept_as_long_as_the_partition_that_was_loaded_from_them(
    old_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then both go, by housekeeping, when it has time; another rebuild does the same at once."""
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)
    batches = len(with_events(scene))
    rebuild(stack.worker(), day, Way.REENRICH)
    worker = stack.worker()

    def refuse(path: str) -> None:
        raise AssertionError(f"{path} is deleted again")

    with monkeypatch.context() as patched:
        patched.setattr(worker.lake, "delete", refuse)
        assert let_go_of_replaced(worker, 7).count == 0
    assert len(kept_files(scene)) == batches
    with monkeypatch.context() as patched:
        patched.setattr(tally, "PATIENCE_S", -1.0)
        found = let_go_of_replaced(stack.worker(), 0)
        assert (found.count, found.cut_short) == (0, True)
    assert len(kept_files(scene)) == batches
    assert let_go_of_replaced(stack.worker(), 0).count == 1
    assert kept_files(scene) == []
    assert dates_with_remakes(stack.ledger, stack.settings.topic) == []
    with pytest.raises(BatchError, match="nothing is kept"):
        back(stack.worker(), day)
    prove(scene, {("web", 1): 120})
    assert stack.rows(f"SELECT count() FROM {{database}}.{PREVIOUS}") == [(0,)]


def test_what_a_re_enrich_replaces_while_housekeeping_works_can_be_brought_back(
    old_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a date is asked under its lease."""
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)

    def meanwhile(ledger: Engine, topic: str) -> list[date]:
        rebuild(stack.worker(), day, Way.REENRICH)
        return dates_with_remakes(ledger, topic)

    monkeypatch.setattr(replaced, "dates_with_remakes", meanwhile)
    assert let_go_of_replaced(stack.worker(), 7).count == 0
    assert len(kept_files(scene)) == len(with_events(scene))
    assert back(stack.worker(), day).state is RebuildState.RETURNED
    prove(scene, {("older", 0): 120})


def test_files_of_a_batch_that_was_staged_again_since_stay_as_they_are(
    old_scene: NewScene,
) -> None:
    """Its new file is lost, with its rows: Kafka has them. Brought back, the others are older."""
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)
    rebuild(stack.worker(), day, Way.REENRICH)
    batch = with_events(scene)[0]
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    stack.lake_file(file.path).unlink()
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{batch.batch_id}' "
        "SETTINGS mutations_sync = 2"
    )
    stack.lake_file(file.path).touch()
    stack.client.command(
        f"ALTER TABLE {stack.database}.{PREVIOUS} DELETE WHERE _batch_id = '{batch.batch_id}' "
        "SETTINGS mutations_sync = 2"
    )
    with stack.ledger.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE batches SET state = 'loading' WHERE batch_id = '{batch.batch_id}'"
        )
    assert scene.work() == 5
    assert scene.work_when_free() == 0
    assert back(stack.worker(), day).state is RebuildState.RETURNED
    prove(scene, {("older", 0): 120 - file.rows, ("web", 1): file.rows})


def lose(scene: Scene, batch: Batch, *tables: str) -> int:
    """The batch's file of events, and its rows in these tables, are lost; gives how many."""
    stack = scene.stack
    file = batch.staged.file(Kind.EVENTS) if batch.staged else None
    assert file is not None
    stack.lake_file(file.path).unlink()
    for table in tables:
        stack.client.command(
            f"ALTER TABLE {stack.database}.{table} DELETE WHERE _batch_id = '{batch.batch_id}' "
            "SETTINGS mutations_sync = 2"
        )
    with stack.ledger.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE batches SET state = 'loading' WHERE batch_id = '{batch.batch_id}'"
        )
    return file.rows


def test_what_was_made_of_a_file_that_is_another_by_now_is_not_used(
    old_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is staged again between the making and the swap: its newest file counts."""
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)
    with monkeypatch.context() as killed:
        killed.setattr(remaking, "failpoint", interrupt_at("remake-noted"))
        with pytest.raises(KeyboardInterrupt):
            rebuild(stack.worker(), day, Way.REENRICH)
    (made,) = remaking.remakes_of(
        stack.worker(), all_rebuilds(stack.ledger, stack.settings.topic)[0]
    ).made
    [batch] = [each for each in stack.batches() if each.batch_id == made]
    rows = lose(scene, batch, "events")
    assert scene.work() == 5
    assert scene.work_when_free() == 0
    assert rebuild(stack.worker(), day, Way.REENRICH).state is RebuildState.SWAPPED
    prove(scene, {("web", 1): 120 - rows, ("web", 0): rows})


def interrupt_at(point: str) -> Callable[[str], None]:
    """A failpoint that interrupts there."""

    def pass_by(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    return pass_by


@pytest.mark.parametrize("moment", ["swapped while rows are compared", "not in the ledger yet"])
def test_an_audit_beside_a_re_enrich_finds_nothing(
    old_scene: NewScene, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Old files are not held against new rows, whether they are there or gone; nothing stays."""
    scene = old_scene()
    stack, day = scene.stack, day_of(scene)
    found = []

    def re_enrich() -> None:
        rebuild(stack.worker("enricher"), day, Way.REENRICH)

    def audit() -> None:
        found.append(reconcile(stack.worker(), everything(stack.worker()), by_rows=True))

    with monkeypatch.context() as patched:
        if moment == "not in the ledger yet":
            at_swap = {"rebuild-replaced": audit}
            patched.setattr(rebuild_module, "failpoint", lambda name: at_swap.get(name, int)())
            re_enrich()
        else:
            loaded = compare_rows._loaded

            def swap_first(*given: object) -> object:
                patched.setattr(compare_rows, "_loaded", loaded)
                re_enrich()
                return loaded(*given)  # type: ignore[arg-type]

            patched.setattr(compare_rows, "_loaded", swap_first)
            audit()
    assert [str(finding) for each in found for finding in each.findings] == []
    audit()
    assert found[-1].findings == ()
    audits = audits_of(stack.ledger, [batch.batch_id for batch in stack.batches()])
    assert {each.outcome for each in audits} == {HOLDS}
    prove(scene, {("web", 1): 120})


def test_a_date_is_re_enriched_from_dagster(
    old_scene: NewScene, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run that only looks observes what would change and materializes nothing."""
    scene = old_scene()
    day = str(day_of(scene))
    job = definitions(scene.stack.settings).resolve_implicit_global_asset_job_def()
    key = dg.AssetKey("reenriched_events")
    config = {"ops": {"reenriched_events": {"config": {"preview": True}}}}
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster"))) as instance:
        for run_config in (config, {}):
            ran = job.execute_in_process(
                instance=instance,
                partition_key=day,
                asset_selection=[key],
                run_config=run_config,
            )
            assert ran.success
            if run_config:
                assert ran.asset_materializations_for_node("reenriched_events") == []
                (seen,) = instance.fetch_observations(key, limit=5).records
                assert seen.asset_observation is not None
                assert "lib: 120 of 120 rows would change" in seen.asset_observation.description
                found = seen.asset_observation.metadata
                assert found["columns_that_change"].value == {"lib": 120}
                assert made_by(scene) == {("older", 0): 120}
        (told,) = ran.asset_materializations_for_node("reenriched_events")
    assert told.metadata["dagster/partition_row_count"].value == 120
    assert told.metadata["generation"].value == 1
    prove(scene, {("web", 1): 120})


def test_the_form_of_a_file_is_todays(old_scene: NewScene) -> None:
    """All columns of EVENTS, in their order."""
    scene = old_scene()
    rebuild(scene.stack.worker(), day_of(scene), Way.REENRICH)
    for path in Path(scene.stack.settings.lake, "events").rglob("*.parquet"):
        assert pq.read_schema(path).names == EVENTS.names
