"""Dagster's instance on one machine: `home/dagster/dagster.yaml`, written once.

The file is the operator's from then on: it is written when it is missing, never over.
"""

from __future__ import annotations

import os
from pathlib import Path

_DAGSTER_YAML = """\
# Written by tidemark when it was missing. Change it freely: it is not written over.
# Delete it to have it renewed. Without a storage section everything is SQLite beside this file;
# for PostgreSQL add
#   storage: {{postgres: {{postgres_db: {{...}}}}}}

# Runs are forked from a process that has the code imported already; TIDEMARK_FORK_RUNS=false, or no
# such section, and each is a new process (docs/run-launcher.md).
run_launcher:
  module: orchestration.run_launcher
  class: WarmRunLauncher

# One run at a time works on a topic, whoever started it: the cadence, a person, a backfill.
# Counted by run, so that a killed run leaves no slot taken behind.
concurrency:
  pools:
    granularity: run
    default_limit: 1
  runs:
    max_concurrent_runs: {concurrent_runs}

run_queue:
  dequeue_interval_seconds: 1
  dequeue_use_threads: true
  dequeue_num_workers: 2

# Stops runs beyond their tag dagster/max_runtime, and fails those that never start or whose process
# is gone.
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  cancel_timeout_seconds: 30
  max_runtime_seconds: 21600
  poll_interval_seconds: 15

# A run whose process died is started again from the step it was at. Steps that fail are tried
# again inside their run.
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false

retention:
  schedule:
    purge_after_days: {tick_days}
  sensor:
    purge_after_days: {tick_days}

# What a run says goes to its page in the UI; the code server's own log gets no debug lines of it.
python_logs:
  python_log_level: INFO

freshness:
  enabled: false
nux:
  enabled: false
telemetry:
  enabled: false
"""

_TICK_DAYS = 7
_LEAST_CONCURRENT_RUNS = 2


def dagster_home(home: Path) -> Path:
    """Where Dagster keeps its runs and events."""
    return home / "dagster"


def write_instance(home: Path) -> Path:
    """Write dagster.yaml below a Tidemark home if there is none; gives its path."""
    path = dagster_home(home) / "dagster.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _DAGSTER_YAML.format(
            concurrent_runs=max(os.cpu_count() or 1, _LEAST_CONCURRENT_RUNS), tick_days=_TICK_DAYS
        )
        draft = path.with_suffix(".yaml.new")
        draft.write_text(text)
        draft.replace(path)
    return path
