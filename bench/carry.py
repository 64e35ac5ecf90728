"""Tidemark's own batches, carried in a process of its own: stage, load, prove, commit.

Reads its settings from the environment, as every Tidemark process does, and prints a `Carried` as
JSON. It is what `tidemark batch` does, with a stopwatch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict

from assets.pipeline.batch import State
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.worker import Worker
from bench.children import Carried
from bench.errors import BenchFailed, run_command
from bench.usage import peak_bytes
from orchestration.ledger.batches import batches_of_run
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings

_RUN_ID = "benchmark"


def carry(settings: Settings) -> Carried:
    """Drain the topic into ClickHouse; every batch of it ends committed, or this raises."""
    worker = Worker(
        settings,
        open_ledger(settings.ledger),
        _RUN_ID,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    wall, cpu = time.perf_counter(), _cpu_s()
    stage_batches(worker, loads_early=True)
    load_batches(worker)
    load_dead_letters(worker)
    wall, cpu = time.perf_counter() - wall, _cpu_s() - cpu

    batches = batches_of_run(worker.ledger, _RUN_ID)
    stages: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    records = rows = 0
    for batch in batches:
        if batch.state is not State.COMMITTED or batch.staged is None:
            raise BenchFailed(f"batch {batch.batch_id} is {batch.state}, not committed")
        records += batch.staged.balance.delivered
        rows += batch.staged.balance.ok
        for name, timing in batch.timings.items():
            stages[name][0] += timing.wall
            stages[name][1] += timing.cpu
    measured_wall = sum(seconds[0] for seconds in stages.values())
    measured_cpu = sum(seconds[1] for seconds in stages.values())
    # The ledger, the lease, the index's upkeep, dead letters, the mirror: no batch's own stage. And
    # the Kafka client's threads. Stages run side by side: of the wall time there may be nothing.
    stages["other"] = [max(0.0, wall - measured_wall), cpu - measured_cpu]
    return Carried(
        records=records,
        rows=rows,
        wall_s=wall,
        cpu_s=cpu,
        peak_bytes=peak_bytes() + sum(worker.stagers.values()),
        batches=len(batches),
        stagers=len(worker.stagers),
        stages={name: (seconds[0], seconds[1]) for name, seconds in stages.items()},
    )


def _cpu_s() -> float:
    """Of this process, and of its stagers when they have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Carry, and print what it took."""
    print(json.dumps(asdict(carry(Settings()))))


if __name__ == "__main__":
    run_command(main, "bench.carry")
