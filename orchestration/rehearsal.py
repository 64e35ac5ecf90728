"""Rehearsal: a run of nothing, in a folder that goes with it.

What Dagster and SQLAlchemy import, build and compile when they are first used is there afterwards,
and in every process that is forked.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from orchestration.dagster_storage.sqlite import SqliteStorage
from orchestration.run_logs import RunLogs

_DAYS = dg.StaticPartitionsDefinition(["one"])


@dg.asset(partitions_def=_DAYS)
def rehearsed(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """An asset, with what those of the pipeline do."""
    context.log.info("rehearsed")
    context.log_event(dg.AssetObservation("source", metadata={"seconds": 0.0}))
    context.instance.add_run_tags(context.run.run_id, {"rehearsed": "yes"})
    return dg.MaterializeResult(metadata={"rows": 0, "note": dg.MetadataValue.text("none")})


@dg.asset(deps=[rehearsed, "source"], partitions_def=_DAYS)
def rehearsed_after() -> None:
    """One that comes after it."""


@dg.multi_asset_check(specs=[dg.AssetCheckSpec("sound", asset="rehearsed")])
def rehearsed_check() -> dg.AssetCheckResult:
    """A check in a step of its own."""
    return dg.AssetCheckResult(passed=True)


def rehearse() -> None:
    """Run them, twice: the second finds what the first has left."""
    with tempfile.TemporaryDirectory() as folder, _level_kept(dg.get_dagster_logger()):
        overrides = {
            "storage": {"custom": _ours(SqliteStorage, folder)},
            "compute_logs": _ours(RunLogs, folder),
            "python_logs": {"python_log_level": "CRITICAL"},
            "telemetry": {"enabled": False},
        }
        with dg.DagsterInstance.local_temp(folder, overrides=overrides) as instance:
            for _ in range(2):
                dg.materialize(
                    [rehearsed, rehearsed_after, rehearsed_check],
                    instance=instance,
                    partition_key="one",
                )


@contextmanager
def _level_kept(logger: logging.Logger) -> Iterator[None]:
    """An instance sets the level that all loggers of runs have."""
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)


def _ours(kind: type, folder: str) -> dict[str, object]:
    return {"module": kind.__module__, "class": kind.__name__, "config": {"base_dir": folder}}
