"""What Dagster costs a micro-batch: a run that has nothing to do, from the tick to its success.

    Kafka, ClickHouse: up, empty ─┐
    for each arm, in turn: code server, webserver, daemon ─▶ a tick every 5 s, each starts a run
                                  ─▶ CPU of the three with all their children, times of the runs

The arms are the launchers (Tidemark's, Dagster's default) on each storage (SQLite, PostgreSQL).
What the processes use when idle, and what the ticks cost, is in the figures; the benchmark's own
looks, Kafka, ClickHouse and PostgreSQL are not.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import dagster as dg
from rich.console import Console

from bench import options
from bench.children import REPOSITORY, Deadline
from bench.errors import BenchFailed, run_command
from bench.figures import spread, table, write_json
from bench.parts import (
    bench_settings,
    local_clickhouse,
    local_dagster,
    local_kafka,
    temporary_home,
)
from bench.postgresql import local_postgresql
from bench.usage import require_proc, resident_bytes_of, usage_of
from local_stack.stack import make_ready
from orchestration.instance import open_instance
from orchestration.services import dagster_services
from orchestration.settings import Settings

_LOOK_EVERY_S = 0.2
_CADENCE_S = 5
_WARM_RUNS = 2


@dataclass(frozen=True)
class Measured:
    """Of one stretch of runs: seconds of each run, CPU seconds a run of each process."""

    runs: int
    until_success_s: list[float]
    until_started_s: list[float]
    cpu_s: dict[str, float]
    resident_bytes: int
    postgresql_cpu_s: float | None

    @property
    def cpu_a_run_s(self) -> float:
        """Of the three processes and their children."""
        return sum(self.cpu_s.values())


@click.command()
@click.option("--runs", default=12, show_default=True, type=click.IntRange(min=1))
@click.option("--repeat", default=2, show_default=True, type=click.IntRange(min=1))
@options.storages
@click.option(
    "--launcher",
    "launchers",
    multiple=True,
    type=click.Choice(["forked", "default"]),
    help="What starts a run; both unless said.",
)
@options.limit(1800.0)
@options.json_file
def main(
    runs: int,
    repeat: int,
    storages: tuple[str, ...],
    launchers: tuple[str, ...],
    limit: float,
    json_file: Path | None,
) -> None:
    """Measure a micro-batch that has nothing to do, by launcher and storage."""
    require_proc()
    facts, console = options.introduced()
    deadline = Deadline(limit)
    found: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    servers = local_postgresql() if "postgresql" in storages else nullcontext()
    with temporary_home() as home, servers as server, local_kafka(home) as kafka:
        bootstrap = kafka.settings.bootstrap_servers
        with local_clickhouse(home / "clickhouse", bootstrap) as clickhouse:
            address = clickhouse.settings.clickhouse_address
            for turn in range(repeat):
                for storage in storages:
                    for launcher in launchers or ("forked", "default"):
                        name = f"{storage}_{launcher}_{turn}"
                        url = ""
                        if storage == "postgresql" and server is not None:
                            url = server.new_database(name)
                        settings = bench_settings(
                            home / name,
                            kafka_bootstrap_servers=bootstrap,
                            clickhouse_url=address,
                            cadence=f"{_CADENCE_S}s",
                            checks_cron="0 0 1 1 *",  # their runs are no micro-batches
                            fork_runs=launcher == "forked",
                            dagster_storage_url=url,
                        )
                        make_ready(settings)
                        pid = server.pid if storage == "postgresql" and server else None
                        measured = _measure(settings, runs, deadline, pid)
                        found[storage, launcher].append(measured)
                        console.print(
                            f"{name}: {measured.cpu_a_run_s:.2f} CPU s a run", highlight=False
                        )
    _show(console, found)
    write_json(
        json_file,
        {
            "machine": facts,
            "arms": [
                {
                    "storage": storage,
                    "launcher": launcher,
                    "measured": [asdict(m) for m in measured],
                }
                for (storage, launcher), measured in found.items()
            ],
        },
    )


def _measure(settings: Settings, runs: int, deadline: Deadline, server: int | None) -> Measured:
    """Start Dagster, let it warm up, and count so many runs from the end of one."""
    services = dagster_services(settings, "bench.empty_batches", REPOSITORY)
    with (
        local_dagster(settings, services, deadline) as pids,
        open_instance(settings) as instance,
    ):
        first = _await_runs(instance, _WARM_RUNS, deadline)
        before = {name: usage_of(pid).cpu_s for name, pid in pids.items()}
        server_before = usage_of(server).cpu_s if server else 0.0
        last = _await_runs(instance, first + runs, deadline)
        after = {name: usage_of(pid).cpu_s for name, pid in pids.items()}
        server_cpu_s = usage_of(server).cpu_s - server_before if server else None
        resident = sum(resident_bytes_of(pid) for pid in pids.values())
        count = last - first
        ticks = _ticks(instance)
        records = instance.get_run_records(limit=count)
    times = [
        (record.start_time - ticks[run], record.end_time - ticks[run])
        for record in records
        if (run := record.dagster_run.run_id) in ticks and record.start_time and record.end_time
    ]
    return Measured(
        runs=count,
        until_started_s=[started for started, _ in times],
        until_success_s=[ended for _, ended in times],
        cpu_s={name: (after[name] - before[name]) / count for name in pids},
        resident_bytes=resident,
        postgresql_cpu_s=None if server_cpu_s is None else server_cpu_s / count,
    )


def _await_runs(instance: dg.DagsterInstance, count: int, deadline: Deadline) -> int:
    """Wait until so many runs have succeeded; gives how many have."""
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
    succeeded = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS])
    while (found := instance.get_runs_count(succeeded)) < count:
        deadline.left_s()
        if instance.get_runs_count(failed):
            raise BenchFailed("a run failed: there is no honest figure")
        time.sleep(_LOOK_EVERY_S)
    return found


def _ticks(instance: dg.DagsterInstance) -> dict[str, float]:
    """When the tick was that asked for a run, by run."""
    return {
        run_id: tick.timestamp
        for state in instance.all_instigator_state()
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
        for run_id in tick.run_ids
    }


def _show(console: Console, found: dict[tuple[str, str], list[Measured]]) -> None:
    made = table(
        "A micro-batch that has nothing to do",
        "storage, launcher",
        "CPU s a run",
        "of a core at 5 s",
        "daemon",
        "code server",
        "webserver",
        "PostgreSQL",
        "tick to start, s",
        "tick to success, s",
    )
    for (storage, launcher), measured in found.items():
        whole = spread(m.cpu_a_run_s for m in measured)
        server = [m.postgresql_cpu_s for m in measured if m.postgresql_cpu_s is not None]
        made.add_row(
            f"{storage}, {launcher}",
            whole.show(2),
            f"{whole.median / _CADENCE_S:.0%}",
            *(
                spread(m.cpu_s[name] for m in measured).show(2)
                for name in ("dagster-daemon", "dagster-code", "dagster-webserver")
            ),
            spread(server).show(2) if server else "",
            spread(s for m in measured for s in m.until_started_s).show(2),
            spread(s for m in measured for s in m.until_success_s).show(2),
        )
    console.print(made)


if __name__ == "__main__":
    run_command(main, "bench.run_overhead")
