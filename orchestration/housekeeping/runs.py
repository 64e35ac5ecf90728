"""Runs: Dagster keeps every run and event for ever; here old ones go.

    old runs ─▶ what they alone say of a partition is said again, without a run ─▶ run deleted

Invariant: a partition that was materialized stays so. A crash on the way leaves a partition that is
said twice, or runs for the next day.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

_AT_ONCE = 200


def old_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """How many runs ended, and were made before that time."""
    return instance.get_runs_count(_finished(before))


def let_go_of_runs(instance: dg.DagsterInstance, before: datetime, limit_seconds: float) -> int:
    """Delete the runs that ended, and were made before that time; gives how many.

    Those that do not fit into the time are left for another day.
    """
    end, gone = time.monotonic() + limit_seconds, 0
    while time.monotonic() < end:
        runs = instance.get_runs(_finished(before), limit=_AT_ONCE, ascending=True)
        if not runs:
            break
        _say_again(instance, {run.run_id for run in runs})
        for run in runs:
            instance.delete_run(run.run_id)
            _delete_files(instance, run.run_id)
        gone += len(runs)
    return gone


def _finished(before: datetime) -> dg.RunsFilter:
    return dg.RunsFilter(statuses=list(FINISHED_STATUSES), created_before=before)


def _say_again(instance: dg.DagsterInstance, run_ids: Collection[str]) -> None:
    """Say of each partition what one of these runs was the last to say, without a run."""
    for asset_key in instance.all_asset_keys():
        newest = instance.get_latest_storage_id_by_partition(
            asset_key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        ids = sorted(newest.values())
        for at in range(0, len(ids), _AT_ONCE):
            some = dg.AssetRecordsFilter(asset_key, storage_ids=ids[at : at + _AT_ONCE])
            for record in instance.fetch_materializations(some, limit=_AT_ONCE).records:
                told = record.asset_materialization
                if told is not None and record.run_id in run_ids:
                    instance.report_runless_asset_event(told)


def _delete_files(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete what deleting a run leaves on the disk: its logs and, with SQLite, its database."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    events = instance.event_log_storage
    if isinstance(events, SqliteEventLogStorage):
        database = events.path_for_shard(run_id)
        for suffix in ("", "-wal", "-shm"):
            Path(database + suffix).unlink(missing_ok=True)
