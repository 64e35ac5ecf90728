"""Runs whose process is killed in mid-batch: Dagster's own processes notice and carry them on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from assets.pipeline.batch import State
from assets.pipeline.failpoints import VARIABLE
from local_stack.processes import log_path
from orchestration.lost_runs import worker_of
from orchestration.process_stat import stat_of
from orchestration.services import LOCATION, dagster_services
from orchestration.settings import Settings
from orchestration.webserver import ask
from tests.conftest import unused_port
from tests.orchestration.conftest import until
from tests.orchestration.processes import dagster_running
from tests.pids import process_state
from tests.stack import Place, Stack

RECORDS = 200

LAUNCH = """
mutation Launch($location: String!, $day: String!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: $location, repositoryName: "__repository__", jobName: "micro_batch"
    },
    runConfigData: "{}",
    executionMetadata: {tags: [{key: "dagster/partition", value: $day}]}
  }) { __typename ... on LaunchRunSuccess { run { runId } }
       ... on PythonError { message } } }
"""


@dataclass
class Deployment:
    """Dagster's processes over a topic; the next to pass what the file `point` says stops there."""

    stack: Stack
    instance: dg.DagsterInstance
    point: Path
    sent: list[Place]

    def run_until(self, point: str) -> tuple[str, int]:
        """Start a micro-batch over new records; gives its run and its process, stopped there."""
        begun = len(self.sent)
        self.sent += self.stack.send_numbers(range(begun, begun + RECORDS), 2)
        self.point.write_text(f"{point}:stop")
        run_id = self.launch()
        pid = until(lambda: self._process(run_id), f"run {run_id} begins\n{self.log()}")
        until(lambda: _stands_still(pid), f"run {run_id} comes to {point}\n{self.log()}")
        return run_id, pid

    def launch(self) -> str:
        """A micro-batch, as somebody starts it from the UI: no tick of a cadence is near."""
        day = datetime.now(UTC).date().isoformat()
        address = self.stack.settings.dagster_address
        answer = ask(address, LAUNCH, location=LOCATION, day=day)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def ended(self, run_id: str) -> dg.DagsterRunStatus:
        """Wait until the run is over, and how."""
        until(lambda: self._run(run_id).is_finished, f"run {run_id} ends\n{self.log()}")
        return self._run(run_id).status

    def retried(self, run_id: str) -> str:
        """Wait until Dagster has started the run again."""
        wanted = dg.RunsFilter(tags={"dagster/parent_run_id": run_id})
        (found,) = until(
            lambda: self.instance.get_runs(wanted), f"run {run_id} is tried again\n{self.log()}"
        )
        return str(found.run_id)

    def assert_whole(self) -> None:
        """Each record is found once, and each batch is proved to its end."""
        assert self.stack.account().places == dict.fromkeys(self.sent, 1)
        assert {batch.state for batch in self.stack.batches()} == {State.COMMITTED}

    def log(self) -> str:
        """The end of what the daemon said."""
        return log_path(self.stack.settings.home, "dagster-daemon").read_text()[-3000:]

    def _run(self, run_id: str) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def _process(self, run_id: str) -> int | None:
        worker = worker_of(self._run(run_id))
        return worker.pid if worker else None


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def deployment(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    kafka: str,
    clickhouse: str,
) -> Iterator[Deployment]:
    """Dagster as `tidemark up` starts it, on either storage, with a failpoint that is a file."""
    home, name = tmp_path_factory.mktemp("killed"), uuid4().hex[:12]
    url = request.getfixturevalue("postgresql")() if request.param == "postgresql" else ""
    settings = Settings(
        home=home,
        topic=f"events-{name}",
        clickhouse_database=f"tests_{name}",
        kafka_bootstrap_servers=kafka,
        clickhouse_url=clickhouse,
        dagster_port=unused_port(),
        dagster_storage_url=url,
        cadence="24h",
    )
    stack, point = Stack(settings).make_topic(2), home / "point"
    services = [
        replace(service, env={**settings.environment(), **service.env, VARIABLE: f"@{point}"})
        for service in dagster_services(settings)
    ]
    try:
        with dagster_running(settings, services) as instance:
            yield Deployment(stack, instance, point, [])
    finally:
        stack.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.matrix("a run's process is killed")
@pytest.mark.parametrize("point", ["while-staging", "after-insert"])
def test_a_killed_run_is_started_again(deployment: Deployment, point: str) -> None:
    """kill -9 in mid-batch: the run is failed, and the one that retries it loses nothing."""
    run_id, pid = deployment.run_until(point)
    os.kill(pid, signal.SIGKILL)
    assert deployment.ended(run_id) is dg.DagsterRunStatus.FAILURE
    assert deployment.ended(deployment.retried(run_id)) is dg.DagsterRunStatus.SUCCESS
    deployment.assert_whole()


@pytest.mark.matrix("a run is killed with the process that forked it")
def test_a_run_killed_with_the_warm_process_is_started_again(deployment: Deployment) -> None:
    """Nobody is left who sees it at once; run monitoring does, and a new one forks the retry."""
    run_id, pid = deployment.run_until("after-insert")
    forker = _parent(pid)
    os.kill(forker, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert deployment.ended(run_id) is dg.DagsterRunStatus.FAILURE
    retry = deployment.retried(run_id)
    assert deployment.ended(retry) is dg.DagsterRunStatus.SUCCESS
    deployment.assert_whole()


@pytest.mark.matrix("the process that forks runs is killed")
def test_a_run_outlives_the_warm_process(deployment: Deployment) -> None:
    """The run at work goes on to its end; the next one comes from a new warm process."""
    run_id, pid = deployment.run_until("after-insert")
    os.kill(forker := _parent(pid), signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)
    assert deployment.ended(run_id) is dg.DagsterRunStatus.SUCCESS
    deployment.assert_whole()
    run_id, pid = deployment.run_until("after-insert")
    assert _parent(pid) != forker
    os.kill(pid, signal.SIGCONT)
    assert deployment.ended(run_id) is dg.DagsterRunStatus.SUCCESS
    deployment.assert_whole()


def _stands_still(pid: int) -> bool:
    return process_state(pid) == "T"


def _parent(pid: int) -> int:
    return int(stat_of(pid)[1])
