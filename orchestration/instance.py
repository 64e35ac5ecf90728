"""Dagster's instance on one machine: `home/dagster/dagster.yaml`, written once.

The file is the operator's from then on: it is written when it is missing, never over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError

from local_stack.errors import StackError
from orchestration.ledger.errors import in_one_line, what_to_do
from orchestration.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

_DAGSTER_YAML = """\
# Written by tidemark when it was missing. Change it freely: it is not written over.
# Delete it to have it renewed.

# SQLite beside this file, or what TIDEMARK_DAGSTER_STORAGE_URL names (docs/dagster-storage.md).
storage:
  custom:
    module: {storage_module}
    class: Storage
    config:
      base_dir: {{env: DAGSTER_HOME}}

# What runs print, in files beside it. It stands in the daemon's log as well, when a run has ended.
compute_logs:
  module: orchestration.run_logs
  class: RunLogs
  config:
    base_dir: {{env: DAGSTER_HOME}}

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

_OF_DAGSTER = ("dagster", "dagster_shared", "dagster_postgres")
_STORAGE_MODULE = "orchestration.dagster_storage"
_TICK_DAYS = 7
_LEAST_CONCURRENT_RUNS = 2


def dagster_home(home: Path) -> Path:
    """Where Dagster keeps its runs and events."""
    return home / "dagster"


def prepare_instance(settings: Settings) -> None:
    """Write what is missing of it. Raises StackError when what is there cannot be used as it is."""
    write_instance(settings.home)
    require_storage(settings)


def write_instance(home: Path) -> Path:
    """Write dagster.yaml below a Tidemark home if there is none; gives its path."""
    path = dagster_home(home) / "dagster.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = _DAGSTER_YAML.format(
            storage_module=_STORAGE_MODULE,
            concurrent_runs=max(os.cpu_count() or 1, _LEAST_CONCURRENT_RUNS),
            tick_days=_TICK_DAYS,
        )
        draft = path.with_suffix(".yaml.new")
        draft.write_text(text)
        draft.replace(path)
    return path


def instance_environment(settings: Settings) -> dict[str, str]:
    """What a process needs in its environment to find the instance."""
    return {
        "DAGSTER_HOME": str(dagster_home(settings.home)),
        "TIDEMARK_HOME": str(settings.home),
        # Of one moment for all processes: runs must be looked for where they are written.
        "TIDEMARK_DAGSTER_STORAGE_URL": settings.dagster_storage_url,
    }


@contextmanager
def open_instance(settings: Settings, folder: Path | None = None) -> Iterator[DagsterInstance]:
    """The instance, for a process that is none of Dagster's and has their environment meanwhile.

    It is the one in the home, unless a folder is given. Raises StackError if it cannot be opened.
    """
    from dagster import DagsterInstance  # the command line can do without it, and starts sooner

    folder = folder or dagster_home(settings.home)
    _read(folder / "dagster.yaml")
    with _in_environment({**instance_environment(settings), "DAGSTER_HOME": str(folder)}):
        try:
            instance = DagsterInstance.from_config(str(folder))
        except Exception as error:
            if not (is_of_dagster(error) or isinstance(error, SQLAlchemyError)):
                raise
            raise StackError(dagster_trouble(error)) from error
        with instance:
            yield instance


@contextmanager
def _in_environment(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_of_dagster(error: Exception) -> bool:
    """Whether it is Dagster's; those of its checks and of PostgreSQL are no DagsterError."""
    return type(error).__module__.partition(".")[0] in _OF_DAGSTER


def dagster_trouble(error: Exception) -> str:
    """What Dagster cannot do, in a line, with what to do."""
    database = next((e for e in (error, error.__cause__) if isinstance(e, SQLAlchemyError)), None)
    reason = in_one_line(database) if database else " ".join(str(error).split())
    where = "dagster.yaml in DAGSTER_HOME, and TIDEMARK_DAGSTER_STORAGE_URL"
    return f"Dagster's instance cannot be used ({reason}); {what_to_do(reason, where)}"


def require_storage(settings: Settings) -> None:
    """Raise StackError if the settings name a storage that `dagster.yaml` would pass over."""
    path = dagster_home(settings.home) / "dagster.yaml"
    found = _read(path).get("storage", {})
    if settings.dagster_storage_url and _STORAGE_MODULE not in str(found):
        raise StackError(
            f"TIDEMARK_DAGSTER_STORAGE_URL is set, but {path} is of an earlier version or has a "
            "storage of its own: delete the file to have it renewed, or unset the variable"
        )


def _read(path: Path) -> dict[str, Any]:
    """What the file says; nothing when it is not there. Raises StackError with the line."""
    how = "mend it, or delete it to have it renewed"
    try:
        found = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise StackError(f"{path}{line}: {error.problem or error.context}: {how}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StackError(f"{path} is no YAML ({' '.join(str(error).split())}): {how}") from None
    if not isinstance(found, dict | None):
        raise StackError(f"{path} has no sections, `storage:` and the like: {how}")
    return found or {}
