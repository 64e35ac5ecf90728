"""What Dagster is given: the graph, the trigger that the cadence asks for, the instance's file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from assets.column_texts import COLUMN_TEXTS
from assets.metadata import arrow_schema, clickhouse_schema
from assets.pipeline.columns import DEAD_LETTERS, EVENTS
from local_stack.errors import StackError
from orchestration.definitions import definitions
from orchestration.instance import open_instance, write_instance
from orchestration.partitions import FIRST_ARRIVAL_DATE, arrival_dates, partition_of
from orchestration.services import code_socket, dagster_services
from orchestration.settings import Settings

OTHERS = {"checks_schedule", "housekeeping_schedule"}
ROOT = Path(__file__).parents[2]


def test_every_column_is_explained() -> None:
    """On the pages of the assets, and by nothing that no table has."""
    schemas = (arrow_schema(EVENTS), clickhouse_schema("events"), clickhouse_schema("dead_letters"))
    columns = [column for schema in schemas for column in schema.columns]
    assert {column.name for column in columns if not column.description} == set()
    assert set(COLUMN_TEXTS) == {column.name for column in columns}


def test_the_graph(settings: Callable[..., Settings]) -> None:
    """The lineage that the UI draws, with icons, groups and the pool that keeps runs apart."""
    graph = definitions(settings()).resolve_asset_graph()
    assert {
        node.key.to_user_string(): (
            sorted(key.to_user_string() for key in node.parent_keys),
            sorted(node.kinds),
            node.group_name,
            sorted(node.pools or ()),
            node.is_partitioned,
            bool(node.description),
        )
        for node in graph.asset_nodes
    } == {
        "capture_api": ([], ["python"], "ingest", [], False, True),
        **{
            f"kafka/{topic}": (["capture_api"], ["kafka"], "ingest", [], False, True)
            for topic in ("events", "events_historical", "events_overflow")
        },
        "staged_events": (
            ["kafka/events", "kafka/events_historical", "kafka/events_overflow"],
            ["arrow", "parquet"],
            "ingest",
            ["kafka_events"],
            True,
            True,
        ),
        "events": (["staged_events"], ["clickhouse"], "ingest", ["kafka_events"], True, True),
        "housekeeping": ([], [], "upkeep", [], False, True),
        "rebuilt_events": (
            ["events", "staged_events"],
            ["clickhouse"],
            "backfill",
            ["rebuild_events"],
            True,
            True,
        ),
        "reenriched_events": (
            ["events", "staged_events"],
            ["clickhouse", "parquet"],
            "backfill",
            ["rebuild_events"],
            True,
            True,
        ),
        "replayed_events": (
            ["events", "staged_events"],
            ["kafka", "parquet"],
            "backfill",
            ["rebuild_events"],
            True,
            True,
        ),
        "dead_letters": (
            ["events", "staged_events"],
            ["clickhouse"],
            "ingest",
            ["kafka_events"],
            True,
            True,
        ),
        "queryable": (["dead_letters", "events"], ["clickhouse"], "ingest", [], False, True),
    }
    # Nothing may make it: Dagster forgets what checks said before a materialization.
    assert not graph.get(dg.AssetKey("queryable")).is_executable
    assert {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys} == {
        ("events", "balance"),
        ("events", "lanes"),
        ("events", "older_batches"),
        ("dead_letters", "balance"),
        ("queryable", "duplicates"),
        ("queryable", "schema"),
        ("queryable", "completeness"),
        ("queryable", "freshness"),
        ("queryable", "rejects_share"),
        ("housekeeping", "parts"),
    }


@pytest.mark.parametrize(
    ("cadence", "cron", "interval"),
    [
        ("5s", None, 5),
        ("30s", None, 30),
        ("1m", "* * * * *", None),
        ("2h", "0 */2 * * *", None),
        ("*/5 * * * *", "*/5 * * * *", None),
    ],
)
def test_the_cadence_makes_a_schedule_or_a_sensor(
    settings: Callable[..., Settings], cadence: str, cron: str | None, interval: int | None
) -> None:
    """From a minute on a schedule, below it a sensor, never both, and running by default."""
    repository = definitions(settings(cadence=cadence)).get_repository_def()
    schedules = [s for s in repository.schedule_defs if s.name not in OTHERS]
    sensors = [sensor for sensor in repository.sensor_defs if sensor.name != "alarms"]
    assert [schedule.cron_schedule for schedule in schedules] == ([cron] if cron else [])
    assert [sensor.minimum_interval_seconds for sensor in sensors] == (
        [interval] if interval else []
    )
    running = {dg.DefaultScheduleStatus.RUNNING, dg.DefaultSensorStatus.RUNNING}
    assert {trigger.default_status for trigger in [*schedules, *sensors]} <= running


def test_topics_may_have_cadences_of_their_own(settings: Callable[..., Settings]) -> None:
    """Each such topic has a trigger; the others go with the main one."""
    made = settings(cadence="10s", cadence_overflow="30s", cadence_historical="0 3 * * *")
    repository = definitions(made).get_repository_def()
    assert {sensor.name: sensor.minimum_interval_seconds for sensor in repository.sensor_defs} == {
        "micro_batch_sensor": 10,
        "micro_batch_overflow_sensor": 30,
        "alarms": 60,
    }
    (schedule,) = (s for s in repository.schedule_defs if s.name not in OTHERS)
    assert (schedule.name, schedule.cron_schedule) == (
        "micro_batch_historical_schedule",
        "0 3 * * *",
    )
    assert "events_historical at the cadence 0 3 * * *" in (schedule.description or "")


def test_the_checks_of_how_all_stands_have_a_job_of_their_own(
    settings: Callable[..., Settings],
) -> None:
    """A micro-batch has those that prove it; each check is in one of the two jobs."""
    made = definitions(settings(checks_cron="*/7 * * * *"))
    selected = {
        job: {
            key.name for key in made.resolve_job_def(job).asset_layer.asset_graph.asset_check_keys
        }
        for job in ("micro_batch", "checks")
    }
    assert selected == {
        "micro_batch": {"balance", "lanes", "older_batches"},
        "checks": {"schema", "duplicates", "completeness", "freshness", "rejects_share"},
    }
    schedule = made.get_repository_def().get_schedule_def("checks_schedule")
    assert (schedule.cron_schedule, schedule.job_name) == ("*/7 * * * *", "checks")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    with pytest.raises(ValidationError, match="write five fields"):
        settings(checks_cron="often")


def test_every_run_shares_one_process(settings: Callable[..., Settings]) -> None:
    """Jobs, the UI's Materialize and backfills all use the in-process executor."""
    repository = definitions(settings()).get_repository_def()
    executors = {job.executor_def.name for job in repository.get_all_jobs()}
    assert executors == {"in_process"}


def test_the_file_of_settings_is_read_at_each_load(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cadence changed in settings.env counts from the next load; the environment goes first."""
    settings()  # clears the environment
    monkeypatch.setenv("TIDEMARK_HOME", str(tmp_path))
    (tmp_path / "settings.env").write_text("TIDEMARK_CADENCE=10s\n")
    assert Settings().cadence == "10s"
    (tmp_path / "settings.env").write_text("TIDEMARK_CADENCE=5m\n")
    assert Settings().cadence == "5m"
    monkeypatch.setenv("TIDEMARK_CADENCE", "1h")
    assert Settings().cadence == "1h"


def test_the_workspace_file_loads(settings: Callable[..., Settings], tmp_path: Path) -> None:
    """workspace.yaml is all that Dagster needs, from any home."""
    settings()  # clears the environment
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env={**os.environ, "TIDEMARK_HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location tidemark" in done.stdout + done.stderr


def test_the_columns_shown_are_those_of_the_tables() -> None:
    """The columns on an asset's page are the Arrow columns and the two ClickHouse adds."""
    added = ["_run_id", "_inserted_at"]
    events = {column.name: column.type for column in clickhouse_schema("events").columns}
    assert sorted(events) == sorted([*EVENTS.names, *added])
    assert events["timestamp"] == "DateTime64(6, 'UTC')"
    assert events["sent_at"] == "Nullable(DateTime64(6, 'UTC'))"
    dead_letters = [column.name for column in clickhouse_schema("dead_letters").columns]
    assert sorted(dead_letters) == sorted([*DEAD_LETTERS.names, *added])


def test_today_is_a_partition_and_strange_dates_have_one_near() -> None:
    """Records can be shown under some partition, whatever their broker's clock says."""
    today = datetime.now(UTC).date()
    keys = arrival_dates.get_partition_keys()
    for day in (date(2020, 5, 5), FIRST_ARRIVAL_DATE, today, today + timedelta(days=3)):
        assert partition_of(day) in keys
    assert partition_of(today) == today.isoformat() == keys[-1]


def test_the_instance_file_is_sound_and_never_written_over(tmp_path: Path) -> None:
    """Dagster takes the file that is written; what the operator changed in it stays."""
    path = write_instance(tmp_path)
    with open_instance(Settings(home=tmp_path)) as instance:
        pools = instance.get_concurrency_config().pool_config
        assert pools.default_pool_limit == 1
        assert pools.pool_granularity is not None
        assert pools.pool_granularity.value == "run"
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert not instance.telemetry_enabled
    path.write_text("# mine\n")
    write_instance(tmp_path)
    assert path.read_text() == "# mine\n"


def test_services_share_one_code_server(settings: Callable[..., Settings]) -> None:
    """Webserver and daemon read the workspace that names the code server's socket."""
    stack = settings()
    services = {service.name: service for service in dagster_services(stack)}
    assert list(services) == ["dagster-code", "dagster-webserver", "dagster-daemon"]
    workspace = stack.home / "dagster" / "workspace.yaml"
    [server] = yaml.safe_load(workspace.read_text())["load_from"]
    assert server["grpc_server"]["socket"] in services["dagster-code"].argv
    for name in ("dagster-webserver", "dagster-daemon"):
        assert str(workspace) in services[name].argv
    homes = {service.env["DAGSTER_HOME"] for service in services.values()}
    assert homes == {str(stack.home / "dagster")}


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of its own, with a path as short as that usually is."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_every_home_has_a_socket_of_its_own_that_can_be_listened_on(temporary: Path) -> None:
    """Also one whose path is too long for a socket, of which only this user sees the folder."""
    short, *long = (temporary / name for name in ("a", "b" * 100, "c" * 100))
    assert code_socket(short) == short / "run" / "code.sock"
    paths = [code_socket(home) for home in (short, *long)]
    assert len(set(paths)) == 3
    for path in paths:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    assert {path.parent.stat().st_mode & 0o777 for path in paths[1:]} == {0o700}
    assert code_socket(short) == paths[0]  # one that was left behind is no hindrance


def test_a_machine_without_room_for_a_socket_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to do stands in the error."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    with pytest.raises(StackError, match="a shorter path"):
        code_socket(tmp_path / ("a" * 100))
