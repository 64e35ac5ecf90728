"""Dagster's storage: SQLite in its home or PostgreSQL, with connections that stay open."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from pydantic import ValidationError
from sqlalchemy import create_engine, inspect, text

from local_stack.errors import StackError
from orchestration.dagster_storage.connections import close_connections
from orchestration.dagster_storage.postgresql import (
    _MAKING_TABLES,
    PostgresqlRuns,
    PostgresqlStorage,
)
from orchestration.dagster_storage.sqlite import SqliteEvents
from orchestration.instance import dagster_home, open_instance, require_storage, write_instance
from orchestration.ledger.connection import open_ledger
from orchestration.services import dagster_services
from orchestration.settings import SETTINGS_FILE, Settings
from tests.orchestration.conftest import until


@dg.asset(check_specs=[dg.AssetCheckSpec("sound", asset="numbers")])
def numbers():  # type: ignore[no-untyped-def]  # Dagster reads an annotation as outputs
    """Something to run."""
    return dg.MaterializeResult(
        metadata={"rows": 3}, check_results=[dg.AssetCheckResult(passed=True)]
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings with Dagster's storage of either kind, and its file written."""
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql")()
    found = Settings(home=tmp_path, dagster_storage_url=url)
    write_instance(found.home)
    return found


def run_once(instance: dg.DagsterInstance) -> str:
    """A run of the asset; gives its id."""
    done = dg.materialize([numbers], instance=instance)
    assert done.success
    return done.run_id


def open_files() -> set[str]:
    """The files that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(link.readlink()))
    return found


def test_a_run_is_there_for_others(settings: Settings) -> None:
    """What one process writes another one reads: status, events, assets, checks."""
    with open_instance(settings) as writer, open_instance(settings) as reader:
        run_id = run_once(writer)
        run = reader.get_run_by_id(run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.SUCCESS
        written = writer.get_records_for_run(run_id).records
        assert [r.event_log_entry for r in reader.get_records_for_run(run_id).records] == [
            r.event_log_entry for r in written
        ]
        told = reader.get_latest_materialization_event(numbers.key)
        assert told is not None
        assert told.asset_materialization is not None
        assert told.asset_materialization.metadata["rows"].value == 3
        checks = reader.event_log_storage.get_latest_asset_check_execution_by_key(
            list(numbers.check_keys)
        )
        assert [check.run_id for check in checks.values()] == [run_id]


def test_the_files_are_dagsters_own(tmp_path: Path) -> None:
    """Dagster's classes read what was written, and write what is read: either way goes back."""
    settings = Settings(home=tmp_path)
    path = write_instance(tmp_path)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(open_instance(settings))
        path.unlink()
        dagsters = stack.enter_context(dg.DagsterInstance.local_temp(str(path.parent)))
        assert type(dagsters.event_log_storage) is SqliteEventLogStorage
        assert type(dagsters.run_storage) is SqliteRunStorage
        first, second = run_once(ours), run_once(dagsters)
        third = run_once(ours)
        for instance in (ours, dagsters):
            assert {run.run_id for run in instance.get_runs()} == {first, second, third}
            counts = [len(instance.all_logs(run_id)) for run_id in (first, second, third)]
            assert counts[0] == counts[1] == counts[2] > 0


def test_whoever_watches_a_run_is_called(settings: Settings) -> None:
    """The UI's live log: what is written over a connection that stays open is noticed."""
    with open_instance(settings) as writer, open_instance(settings) as reader:
        run_id = run_once(writer)
        seen: list[dg.EventLogEntry] = []
        came = threading.Event()

        def take(entry: dg.EventLogEntry, _cursor: str) -> None:
            seen.append(entry)
            came.set()

        cursor = reader.get_records_for_run(run_id).cursor
        reader.watch_event_logs(run_id, cursor, take)
        run = writer.get_run_by_id(run_id)
        assert run is not None
        until(lambda: writer.report_engine_event("still here", run) and came.is_set(), "a call")
        reader.end_watch_event_logs(run_id, take)
        assert seen[0].dagster_event is not None
        assert seen[0].dagster_event.message == "still here"


def test_a_forked_process_goes_on_with_an_instance(settings: Settings) -> None:
    """The connections are closed before, and each process has its own afterwards."""
    with open_instance(settings) as instance:
        first = run_once(instance)
        assert close_connections(instance)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if run_once(instance) else 1
            finally:
                os._exit(code)
        runs = [run_once(instance) for _ in range(3)]
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        found = instance.get_runs()
        assert len(found) == 5
        assert {first, *runs} < {run.run_id for run in found}
        assert all(run.status is dg.DagsterRunStatus.SUCCESS for run in found)


def test_a_storage_of_dagsters_is_not_taken_over_a_fork(tmp_path: Path) -> None:
    """What it keeps open is not known: the forked process opens its own."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert not close_connections(instance)


def test_databases_of_many_runs_stay_open_for_a_while(tmp_path: Path) -> None:
    """A process that looks at every run, as the webserver may, does not run out of files."""
    settings = Settings(home=tmp_path)
    write_instance(tmp_path)
    with open_instance(settings) as instance:
        events = instance.event_log_storage
        assert isinstance(events, SqliteEvents)
        runs = [run_once(instance) for _ in range(8)]
        for run_id in runs:
            assert instance.all_logs(run_id)
        databases = open_files()
        assert events.path_for_shard("index") in databases
        assert len([run_id for run_id in runs if events.path_for_shard(run_id) in databases]) == 4
    assert not [
        name for name in open_files() if name.startswith(f"{dagster_home(tmp_path)}/history")
    ]


def test_a_home_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    """A process that goes on meanwhile writes to the new files, not to those that are gone."""
    settings = Settings(home=tmp_path / "home")
    for _ in range(2):
        write_instance(settings.home)
        with open_instance(settings) as instance:
            run_once(instance)
            assert len(instance.get_runs()) == 1
            assert instance.all_instigator_state() == []
        shutil.rmtree(settings.home)


def test_two_processes_make_the_database_of_a_run(tmp_path: Path) -> None:
    """Whoever is second takes the first one's, and nothing half made is ever seen."""
    settings = Settings(home=tmp_path)
    write_instance(tmp_path)
    with open_instance(settings) as one, open_instance(settings) as other:
        run_id = run_once(one)
        path = Path(one.event_log_storage.path_for_shard(run_id))  # type: ignore[attr-defined]
        assert len(other.all_logs(run_id)) == len(one.all_logs(run_id))
        assert [p.name for p in path.parent.iterdir() if p.suffix == ".new"] == []
        path.with_name("torn.db").touch()  # as it stands before its tables are made
        assert other.all_logs("torn") == []


def test_where_there_are_no_links_the_database_of_a_run_is_made_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have none; nothing is left lying about."""

    def link(_source: Path, _target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    write_instance(tmp_path)
    with open_instance(Settings(home=tmp_path)) as instance:
        assert instance.all_logs(run_once(instance))
    assert list(tmp_path.rglob("*.new")) == []


def test_the_services_find_their_tables(settings: Settings) -> None:
    """Webserver and daemon start at the same time: neither has to make them."""
    dagster_services(settings)
    history = dagster_home(settings.home) / "history"
    urls = [f"sqlite:///{history}/runs.db", f"sqlite:///{history}/runs/index.db"]
    found = set()
    for url in [settings.dagster_storage_url] if settings.dagster_storage_url else urls:
        engine = create_engine(url)
        found |= set(inspect(engine).get_table_names())
        engine.dispose()
    assert {"runs", "event_logs", "asset_keys"} <= found


def test_the_environment_is_as_before_but_for_what_others_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the instance needs is set, and only that is put back."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setenv("TIDEMARK_HOME", "elsewhere")
    monkeypatch.delenv("SET_MEANWHILE", raising=False)
    write_instance(tmp_path)
    with open_instance(Settings(home=tmp_path)):
        assert os.environ["DAGSTER_HOME"] == str(dagster_home(tmp_path))
        monkeypatch.setenv("SET_MEANWHILE", "yes")
    assert "DAGSTER_HOME" not in os.environ
    assert os.environ["TIDEMARK_HOME"] == "elsewhere"
    assert os.environ["SET_MEANWHILE"] == "yes"


def test_a_bad_line_of_another_setting_does_not_shut_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the settings only its own is read; that one is refused by name, and not shown."""
    folder = write_instance(tmp_path).parent
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.delenv("TIDEMARK_DAGSTER_STORAGE_URL", raising=False)
    file = tmp_path / SETTINGS_FILE
    file.write_text("TIDEMARK_CAPTURE_PORT=none\nTIDEMARK_KAFKA_OPTIONS=no JSON\n")
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert type(instance.event_log_storage) is SqliteEvents
    file.write_text("TIDEMARK_DAGSTER_STORAGE_URL=postgrs://me:hunter2@db/dagster\n")
    with pytest.raises(ValidationError, match="dagster_storage_url") as refused:
        dg.DagsterInstance.from_config(str(folder))
    assert "hunter2" not in str(refused.value)
    # What a process was started with goes before the file, an empty one too.
    monkeypatch.setenv("TIDEMARK_DAGSTER_STORAGE_URL", "")
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert type(instance.event_log_storage) is SqliteEvents


def test_a_connection_gives_signs_of_life(postgresql: Callable[[], str], tmp_path: Path) -> None:
    """Whatever the URL does not say otherwise."""
    url = f"{postgresql()}&keepalives_idle=7"
    write_instance(tmp_path)
    with open_instance(Settings(home=tmp_path, dagster_storage_url=url)) as instance:
        storage = instance.run_storage
        assert isinstance(storage, PostgresqlRuns)
        with storage.connect() as connection:
            said = connection.connection.driver_connection.get_dsn_parameters()  # type: ignore[union-attr]
    assert said["keepalives_idle"] == "7"
    assert (said["keepalives_interval"], said["keepalives_count"]) == ("10", "3")
    assert said["tcp_user_timeout"] == "30000"


def test_the_webserver_keeps_the_shared_engine(
    postgresql: Callable[[], str], tmp_path: Path
) -> None:
    """It has a limit for a statement, and loses no connection to a restart of the server either."""
    url = postgresql()
    write_instance(tmp_path)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with (
        open_instance(Settings(home=tmp_path, dagster_storage_url=url)) as instance,
        engine.connect() as connection,
    ):
        run_once(instance)
        instance.optimize_for_webserver(statement_timeout=4321, pool_recycle=60, max_overflow=1)
        storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
        assert len({id(storage._engine) for storage in storages}) == 1  # type: ignore[union-attr]
        for _ in range(2):
            with instance.run_storage.connect() as one:  # type: ignore[attr-defined]
                assert one.scalar(text("SHOW statement_timeout")) == "4321ms"
            connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
            until(lambda: not connection.scalar(text(f"SELECT count(*) {others}")), "all are gone")
        run_once(instance)
    engine.dispose()


def test_a_connection_that_the_server_closed_is_made_anew(
    postgresql: Callable[[], str], tmp_path: Path
) -> None:
    """A restart of PostgreSQL costs a process nothing; and it keeps few connections."""
    url = postgresql()
    settings = Settings(home=tmp_path, dagster_storage_url=url)
    write_instance(tmp_path)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with open_instance(settings) as instance, engine.connect() as connection:
        run_once(instance)
        kept = connection.scalar(text(f"SELECT count(*) {others}"))
        assert 1 <= kept <= 2
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
        until(lambda: not connection.scalar(text(f"SELECT count(*) {others}")), "all are gone")
        run_once(instance)
        assert len(instance.get_runs()) == 2
    assert connection.closed
    engine.dispose()


def test_of_processes_that_start_together_one_makes_the_tables(
    postgresql: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """None looks before it may, and none makes what another is making."""
    url = postgresql()
    engine = create_engine(url)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with engine.connect() as connection, ThreadPoolExecutor(3) as pool:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MAKING_TABLES})
        opened = [pool.submit(PostgresqlStorage, url) for _ in range(3)]
        until(lambda: connection.scalar(text(waiting)) == 3, "all of them wait")
        assert inspect(connection).get_table_names() == []
        connection.rollback()
        storages = [each.result() for each in opened]
    assert [record.message for record in caplog.records] == []
    for storage in storages:
        assert storage.run_storage.get_runs() == []
        assert storage.schedule_storage.all_instigator_state() == []
        storage.run_storage.dispose()
    engine.dispose()


def test_dagster_and_the_ledger_share_a_database(
    postgresql: Callable[[], str], tmp_path: Path
) -> None:
    """One PostgreSQL database is enough for both, whichever comes first."""
    for ledger_first in (True, False):
        url = postgresql()
        home = tmp_path / str(ledger_first)
        settings = Settings(home=home, dagster_storage_url=url, ledger_url=url)
        write_instance(home)
        if ledger_first:
            open_ledger(settings.ledger).dispose()
        with open_instance(settings) as instance:
            run_once(instance)
        open_ledger(settings.ledger).dispose()
        with open_instance(settings) as instance:
            assert len(instance.get_runs()) == 1


def test_a_file_of_before_is_not_passed_over(tmp_path: Path) -> None:
    """Whoever sets the variable and keeps an old dagster.yaml is told."""
    path = write_instance(tmp_path)
    require_storage(Settings(home=tmp_path, dagster_storage_url="postgresql://u@h/n"))
    path.write_text("run_queue: {max_concurrent_runs: 2}\n")
    require_storage(Settings(home=tmp_path))
    with pytest.raises(StackError, match=r"delete the file to have it renewed"):
        require_storage(Settings(home=tmp_path, dagster_storage_url="postgresql://u@h/n"))
