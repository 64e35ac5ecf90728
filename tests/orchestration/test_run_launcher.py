"""Runs forked from a warm process, under a real daemon, webserver and code server on SQLite."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from local_stack.processes import Service, log_path, start
from orchestration.instance import dagster_home, write_instance
from orchestration.lost_runs import worker_of
from orchestration.process_stat import stat_of
from orchestration.rehearsal import rehearse
from orchestration.services import LOCATION, dagster_services
from orchestration.settings import SETTINGS_FILE, Settings
from orchestration.webserver import ask
from tests.conftest import unused_port
from tests.orchestration.conftest import until
from tests.orchestration.processes import dagster_running
from tests.pids import alive

CODE = """
import os, sys, threading, time
from pathlib import Path
import dagster as dg

HERE = Path(__file__).parent
VERSION = 1

if (HERE / "threads").exists():
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()

@dg.asset
def numbers(context):
    print("said on stdout")
    context.add_output_metadata({"version": VERSION, "parent": os.getppid()})

@dg.op
def wait(context):
    while not context.run.tags.get("dagster/retry_number") and not (HERE / "enough").exists():
        time.sleep(0.05)

@dg.job
def waiting():
    wait()

@dg.asset(pool="rebuild_events")
def rebuilt():
    while not (HERE / "rebuilt").exists():
        time.sleep(0.05)

quick = dg.define_asset_job("quick", selection="numbers")
rebuilding = dg.define_asset_job("rebuilding", selection="rebuilt")

@dg.sensor(job=quick, minimum_interval_seconds=5, default_status=dg.DefaultSensorStatus.RUNNING)
def once(context):
    return dg.RunRequest(run_key="once")

defs = dg.Definitions(
    assets=[numbers, rebuilt],
    jobs=[quick, waiting, rebuilding],
    sensors=[once],
    executor=dg.in_process_executor,
)
"""

LAUNCH = """
mutation Launch($job: String!, $location: String!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job
    },
    runConfigData: "{}"
  }) { __typename ... on LaunchRunSuccess { run { runId } }
       ... on PythonError { message } } }
"""
TERMINATE = """
mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }
"""
RELOAD = """
mutation Reload($location: String!) {
  reloadRepositoryLocation(repositoryLocationName: $location) { __typename } }
"""


@dataclass(frozen=True)
class Dagster:
    """Dagster's processes over the code above."""

    settings: Settings
    code: Path
    instance: dg.DagsterInstance
    daemon: Service

    def launch(self, job: str) -> str:
        """Ask the webserver for a run, as the launchpad does."""
        answer = ask(self.settings.dagster_address, LAUNCH, job=job, location=LOCATION)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> dg.DagsterRun:
        """The run as it stands."""
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def ended(self, run_id: str) -> dg.DagsterRunStatus:
        """Wait until the run is over, and how."""
        until(lambda: self.run(run_id).is_finished, f"run {run_id} ends\n{self.log()}")
        return self.run(run_id).status

    def worker(self, run_id: str) -> int:
        """Wait until the run is at work, and the process that works on it."""

        def pid() -> int | None:
            run = self.run(run_id)
            worker = worker_of(run) if run.status is dg.DagsterRunStatus.STARTED else None
            return worker.pid if worker else None

        found: int = until(pid, f"run {run_id} begins\n{self.log()}")
        return found

    def told(self) -> tuple[int, int]:
        """Of a new run of the asset: the version of its code, and the process it came from."""
        run_id = self.launch("quick")
        assert self.ended(run_id) is dg.DagsterRunStatus.SUCCESS
        return self.metadata(run_id)

    def metadata(self, run_id: str) -> tuple[int, int]:
        """What the asset said in a run."""
        [record] = self.instance.get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        ).records
        told = record.asset_materialization
        assert told is not None
        version, parent = told.metadata["version"].value, told.metadata["parent"].value
        assert isinstance(version, int)
        assert isinstance(parent, int)
        return version, parent

    def retried(self, run_id: str) -> str:
        """Wait until Dagster has started the run again."""
        found: dg.DagsterRun = until(
            lambda: next(
                iter(self.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))),
                None,
            ),
            f"run {run_id} is tried again\n{self.log()}",
        )
        return found.run_id

    def log(self) -> str:
        """The end of what the daemon said."""
        return log_path(self.settings.home, "dagster-daemon").read_text()[-3000:]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def dagster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dagster]:
    """The three processes, on either storage, with their instance's file as Tidemark writes it."""
    home = tmp_path_factory.mktemp("launcher")
    code = home / "code"
    code.mkdir()
    (code / "code_of_a_test.py").write_text(CODE)
    url = request.getfixturevalue("postgresql")() if request.param == "postgresql" else ""
    settings = Settings(home=home, dagster_port=unused_port(), dagster_storage_url=url)
    path = write_instance(home)
    # Asked more often, for the test's sake.
    text = path.read_text()
    assert "poll_interval_seconds: 15" in text
    path.write_text(text.replace("poll_interval_seconds: 15", "poll_interval_seconds: 2"))
    services = dagster_services(settings, "code_of_a_test", code)
    try:
        with dagster_running(settings, services) as instance:
            yield Dagster(settings, code, instance, services[-1])
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_a_tick_forks_a_run(dagster: Dagster) -> None:
    """The run of a tick succeeds in a forked process that is reaped, its output captured."""
    [run] = until(lambda: dagster.instance.get_runs(), "the sensor asks for a run")
    assert dagster.ended(run.run_id) is dg.DagsterRunStatus.SUCCESS
    _, parent = dagster.metadata(run.run_id)
    assert _is_forker(parent)
    worker = worker_of(dagster.run(run.run_id))
    assert worker is not None
    until(lambda: not Path(f"/proc/{worker.pid}").exists(), "the worker is reaped")
    [captured] = dagster.instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED
    ).records
    data = captured.event_log_entry.dagster_event
    assert data is not None
    key = [run.run_id, "compute_logs", data.logs_captured_data.file_key]
    out = dagster.instance.compute_log_manager.get_log_data(key).stdout
    assert out is not None
    assert b"said on stdout" in out


def test_the_rehearsal_leaves_the_log_level_alone() -> None:
    """What the code of a run logs through Dagster's logger is as loud in a forked run as before."""
    logger = dg.get_dagster_logger()
    before = logger.level
    rehearse()
    assert logger.level == before != logging.CRITICAL


def test_sigterm_ends_an_idle_warm_process(dagster: Dagster) -> None:
    """As its launcher's letting go does; the next run has a new one."""
    _, forker = dagster.told()
    os.kill(forker, signal.SIGTERM)
    until(lambda: not alive([forker]), "the warm process ends")
    _, other = dagster.told()
    assert other != forker
    assert _is_forker(other)


def test_changed_code_is_taken_up(dagster: Dagster) -> None:
    """A changed file, or a reload, makes the next run come from a new process with the new code."""
    version, first = dagster.told()
    assert (version, dagster.told()[1]) == (1, first)
    module = dagster.code / "code_of_a_test.py"
    module.write_text(CODE.replace("VERSION = 1", "VERSION = 2"))
    version, second = dagster.told()
    assert version == 2
    until(lambda: not alive([first]), "the process with the old code ends")
    ask(dagster.settings.dagster_address, RELOAD, location=LOCATION)
    until(lambda: dagster.told()[1] != second, "the daemon hears of the reload")


def test_a_killed_worker_is_noticed_and_tried_again(dagster: Dagster) -> None:
    """kill -9 of the process of a run fails the run, and Dagster's run retry carries it on."""
    run_id = dagster.launch("waiting")
    os.kill(dagster.worker(run_id), signal.SIGKILL)
    assert dagster.ended(run_id) is dg.DagsterRunStatus.FAILURE
    assert dagster.ended(dagster.retried(run_id)) is dg.DagsterRunStatus.SUCCESS


def test_a_worker_killed_with_its_parent_is_noticed(dagster: Dagster) -> None:
    """When nobody is left who forked the run, run monitoring notices."""
    _, forker = dagster.told()
    run_id = dagster.launch("waiting")
    worker = dagster.worker(run_id)
    os.kill(forker, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    assert dagster.ended(run_id) is dg.DagsterRunStatus.FAILURE
    # And a new one forks the next run.
    retry = dagster.retried(run_id)
    assert dagster.ended(retry) is dg.DagsterRunStatus.SUCCESS
    assert worker_of(dagster.run(retry)) is not None


def test_the_limit_of_a_pool_is_how_many_rebuild_at_once(dagster: Dagster) -> None:
    """One at first; others are passed over by what has no such pool; and more when it is set."""
    one = dagster.launch("rebuilding")
    dagster.worker(one)
    other = dagster.launch("rebuilding")
    assert dagster.ended(dagster.launch("quick")) is dg.DagsterRunStatus.SUCCESS
    assert dagster.run(other).status is dg.DagsterRunStatus.QUEUED
    command = [sys.executable, "-m", "dagster", "instance", "concurrency", "set"]
    subprocess.run(
        [*command, "rebuild_events", "2"],
        env={**os.environ, "DAGSTER_HOME": str(dagster_home(dagster.settings.home))},
        check=True,
    )
    dagster.worker(other)
    assert dagster.run(one).status is dg.DagsterRunStatus.STARTED
    (dagster.code / "rebuilt").touch()
    for run_id in (one, other):
        assert dagster.ended(run_id) is dg.DagsterRunStatus.SUCCESS


def test_terminate_ends_the_run(dagster: Dagster) -> None:
    """The UI's Terminate, carried out by the webserver, cancels what the daemon forked."""
    run_id = dagster.launch("waiting")
    worker = dagster.worker(run_id)
    answer = ask(dagster.settings.dagster_address, TERMINATE, run=run_id)
    assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
    assert dagster.ended(run_id) is dg.DagsterRunStatus.CANCELED
    until(lambda: not alive([worker]), "the worker ends")


def test_runs_outlive_the_daemon(dagster: Dagster) -> None:
    """A daemon that is killed takes no run along; its end is noticed all the same."""
    _, forker = dagster.told()
    runs = [dagster.launch("waiting") for _ in range(2)]
    workers = [dagster.worker(run_id) for run_id in runs]
    os.kill(_parent(forker), signal.SIGKILL)
    os.kill(workers[0], signal.SIGKILL)
    assert dagster.ended(runs[0]) is dg.DagsterRunStatus.FAILURE
    (dagster.code / "enough").touch()
    assert dagster.ended(runs[1]) is dg.DagsterRunStatus.SUCCESS
    until(lambda: not alive([forker]), "the warm process ends after its last run")
    start(dagster.daemon, dagster.settings.home)
    assert dagster.ended(dagster.retried(runs[0])) is dg.DagsterRunStatus.SUCCESS


def test_what_cannot_be_forked_is_a_new_process(dagster: Dagster) -> None:
    """By setting, or because the code starts threads, runs go the default launcher's way."""
    (dagster.settings.home / SETTINGS_FILE).write_text("TIDEMARK_FORK_RUNS=false\n")
    assert not _is_forker(dagster.told()[1])
    (dagster.settings.home / SETTINGS_FILE).unlink()
    _, forker = dagster.told()
    assert _is_forker(forker)
    (dagster.code / "threads").touch()
    (dagster.code / "code_of_a_test.py").write_text(CODE)
    assert not _is_forker(dagster.told()[1])
    assert dagster.log().count("Runs cannot be forked from a warm process: threads run in it") == 1
    until(lambda: not alive([forker]), "the warm process of before ends")


def _parent(pid: int) -> int:
    return int(stat_of(pid)[1])


def _is_forker(pid: int) -> bool:
    return b"orchestration.run_forker" in Path(f"/proc/{pid}/cmdline").read_bytes()
