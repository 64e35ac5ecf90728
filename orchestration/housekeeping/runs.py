"""Runs: Dagster keeps every run and event for ever; here old ones go.

    old runs ─▶ what they alone say of a partition is said again, without a run ─▶ run deleted

Invariant: a partition that was materialized stays so, and a run that tells of batches that still
wait for a person stays (tellers.py): without it they would be told of again. A crash on the way
leaves a partition that is said twice, or runs for the next day.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from orchestration.tellers import OPEN, WAITS_TAG, is_open

_AT_ONCE = 200


def old_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """How many runs are to go: they ended, and were made before that time."""
    tellers = instance.get_runs(_finished(before, {WAITS_TAG: OPEN}))
    return instance.get_runs_count(_finished(before)) - sum(map(is_open, tellers))


def let_go_of_runs(instance: dg.DagsterInstance, before: datetime, limit_seconds: float) -> int:
    """Delete the runs that ended, and were made before that time; gives how many there were.

    Those that do not fit into the time are left for another day.
    """
    end, gone, kept = time.monotonic() + limit_seconds, 0, None
    while time.monotonic() < end:
        # From the last one that stays: of those before it the others are gone.
        page = instance.get_runs(_finished(before), cursor=kept, limit=_AT_ONCE, ascending=True)
        if not page:
            break
        stay = [run.run_id for run in page if is_open(run)]
        go = [run.run_id for run in page if not is_open(run)]
        kept = stay[-1] if stay else kept
        if go:
            _say_again(instance, go)
        for run_id in go:
            instance.delete_run(run_id)
            _delete_files(instance, run_id)
        gone += len(go)
    return gone


def _finished(before: datetime, tags: Mapping[str, str] | None = None) -> dg.RunsFilter:
    return dg.RunsFilter(statuses=list(FINISHED_STATUSES), created_before=before, tags=tags)


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
