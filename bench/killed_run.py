"""A run that a `kill -9` took: how soon it is noticed, started again, and its batch loaded.

    Kafka, ClickHouse, Dagster's three processes as `tidemark up` has them
    records ─▶ a micro-batch that stops where its rows are in ClickHouse and the ledger does not
               know ─▶ kill -9 ─▶ failed ─▶ its retry is made ─▶ is at work ─▶ succeeds

The arms are the run's process alone, and that with the warm process it was forked from, on each
storage. No tick helps: the next one is a day away. A run is killed at a moment that chance takes
from the interval of run monitoring: runs that follow one another fall into step with its looks.
Every record must be there once in the end.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
import dagster as dg
from rich.console import Console

from assets.checks import MICRO_BATCH
from assets.pipeline.clickhouse import connect
from assets.pipeline.failpoints import VARIABLE
from bench import options
from bench.children import Deadline
from bench.errors import BenchFailed, run_command
from bench.figures import spread, table, write_json
from bench.fill import fill
from bench.parts import (
    bench_settings,
    local_clickhouse,
    local_dagster,
    local_kafka,
    temporary_home,
)
from bench.postgresql import Postgresql, local_postgresql
from bench.usage import require_proc
from local_stack.stack import make_ready
from orchestration.instance import open_instance
from orchestration.lost_runs import worker_of
from orchestration.process_stat import stat_of
from orchestration.services import LOCATION, dagster_services
from orchestration.settings import Settings
from orchestration.webserver import ask

_LOOK_EVERY_S = 0.05
_POINT = "after-insert"
_ALONE, _BOTH = "the run's process", "with the warm process"
_LAUNCH = """
mutation Launch($location: String!, $job: String!, $day: String!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job
    },
    runConfigData: "{}",
    executionMetadata: {tags: [{key: "dagster/partition", value: $day}]}
  }) { __typename ... on LaunchRunSuccess { run { runId } }
       ... on PythonError { message } } }
"""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Survived:
    """Seconds from the kill until the run was failed, its retry made, at work, and over."""

    noticed_s: float
    retried_s: float
    at_work_s: float
    done_s: float


@click.command()
@click.option("--repeat", default=6, show_default=True, type=click.IntRange(min=1))
@click.option("--events", default=1_000, show_default=True, help="Records of each batch.")
@options.storages
@options.limit(900.0)
@options.json_file
def main(
    repeat: int, events: int, storages: tuple[str, ...], limit: float, json_file: Path | None
) -> None:
    """Measure how soon a killed run is noticed, started again, and done."""
    require_proc()
    facts, console = options.introduced()
    deadline = Deadline(limit)
    found: dict[tuple[str, str], list[Survived]] = defaultdict(list)
    servers = local_postgresql() if "postgresql" in storages else nullcontext()
    with temporary_home() as home, servers as server, local_kafka(home) as kafka:
        bootstrap = kafka.settings.bootstrap_servers
        for storage in storages:
            with _scene(home / storage, bootstrap, storage, server, deadline) as scene:
                for turn in range(repeat):
                    for arm in (_ALONE, _BOTH):
                        one = scene.kill(arm, events, seed=1 + turn)
                        found[storage, arm].append(one)
                        console.print(
                            f"{storage}, {arm}: done after {one.done_s:.1f} s", highlight=False
                        )
                scene.check()
    _show(console, found)
    write_json(
        json_file,
        {
            "benchmark": "killed_run",
            "machine": facts,
            "arms": [
                {"storage": storage, "killed": arm, "survived": [asdict(one) for one in each]}
                for (storage, arm), each in found.items()
            ],
        },
    )


@dataclass
class Scene:
    """Dagster over an empty topic. `point` is a file: who passes what it says first stops there."""

    settings: Settings
    instance: dg.DagsterInstance
    point: Path
    deadline: Deadline
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    sent: int = 0

    def kill(self, arm: str, events: int, seed: int) -> Survived:
        """Kill a micro-batch over so many records; gives when it was noticed, and made good."""
        topic = self.settings.topic
        filled = fill(self.settings.bootstrap_servers, topic, events, 0, self.sent + seed)
        self.sent += filled.records
        self.point.write_text(f"{_POINT}:stop")
        killed = self._launch()
        pid = self._await(lambda: self._stopped(killed), "the run comes to its failpoint")
        time.sleep(self.chance.uniform(0, self.instance.run_monitoring_poll_interval_seconds))
        victims = [pid] if arm == _ALONE else [int(stat_of(pid)[1]), pid]
        at = time.time()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        failed = self._await(lambda: self._over(killed), "the killed run is noticed")
        wanted = dg.RunsFilter(tags={"dagster/parent_run_id": killed})
        (retry,) = self._await(lambda: self.instance.get_run_records(wanted), "it is retried")
        done = self._await(lambda: self._over(retry.dagster_run.run_id), "the retry ends")
        if done.dagster_run.status is not dg.DagsterRunStatus.SUCCESS:
            raise BenchFailed("the retry failed: there is no honest figure")
        times = (
            failed.end_time,
            retry.create_timestamp.timestamp(),
            done.start_time,
            done.end_time,
        )
        return Survived(*((moment or at) - at for moment in times))

    def warm_up(self) -> None:
        """A run without anything to do: the warm process is there afterwards."""
        run_id = self._launch()
        self._await(lambda: self._over(run_id), "the first run ends")

    def check(self) -> None:
        """Raise BenchFailed unless every record is in ClickHouse, once."""
        settings = self.settings
        client = connect(
            settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
        )
        [(rows, places)] = client.query(
            "SELECT count(), uniqExact(_topic, _partition, _offset) "
            f"FROM {settings.clickhouse_database}.events"
        ).result_rows
        client.close()
        if not rows == places == self.sent:
            raise BenchFailed(f"{self.sent:,} records sent, {rows:,} rows of {places:,} places")

    def _launch(self) -> str:
        day = datetime.now(UTC).date().isoformat()
        address = self.settings.dagster_address
        answer = ask(address, _LAUNCH, location=LOCATION, job=MICRO_BATCH, day=day)["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise BenchFailed(f"Dagster starts no run: {answer}")
        return str(answer["run"]["runId"])

    def _stopped(self, run_id: str) -> int | None:
        run = self.instance.get_run_by_id(run_id)
        worker = worker_of(run) if run else None
        return worker.pid if worker and stat_of(worker.pid)[0] == "T" else None

    def _over(self, run_id: str) -> dg.RunRecord | None:
        record = self.instance.get_run_record_by_id(run_id)
        return record if record and record.dagster_run.is_finished else None

    def _await(self, look: Callable[[], Found | None], what: str) -> Found:
        while not (found := look()):
            if self.deadline.left_s() < 1:
                raise BenchFailed(f"given up before {what}")
            time.sleep(_LOOK_EVERY_S)
        return found


@contextmanager
def _scene(
    home: Path, bootstrap: str, storage: str, server: Postgresql | None, deadline: Deadline
) -> Iterator[Scene]:
    point = home / "point"
    with local_clickhouse(home / "clickhouse", bootstrap) as clickhouse:
        settings = bench_settings(
            home / "tidemark",
            topic=f"events_{storage}",
            kafka_bootstrap_servers=bootstrap,
            clickhouse_url=clickhouse.settings.clickhouse_address,
            cadence="24h",
            checks_cron="0 0 1 1 *",
            dagster_storage_url=server.new_database(storage)
            if server and storage == "postgresql"
            else "",
        )
        make_ready(settings)
        services = dagster_services(settings)
        stopping = {VARIABLE: f"@{point}"}
        with local_dagster(settings, services, deadline, stopping), open_instance(settings) as own:
            scene = Scene(settings, own, point, deadline)
            scene.warm_up()
            yield scene


def _show(console: Console, found: dict[tuple[str, str], list[Survived]]) -> None:
    made = table(
        "Seconds from the kill -9 of a run",
        "storage, killed",
        "until it is noticed",
        "its retry is made",
        "is at work",
        "is done",
    )
    for (storage, arm), each in found.items():
        made.add_row(
            f"{storage}, {arm}",
            *(
                spread(getattr(one, f"{name}_s") for one in each).show()
                for name in ("noticed", "retried", "at_work", "done")
            ),
        )
    console.print(made)


if __name__ == "__main__":
    run_command(main, "bench.killed_run")
