"""Plans of dates: a date that a run has planned, and nothing materialized since, has its colour.

Whoever plans a date again and again by a run that is over would fill that run's log, and make it
the newest run of the asset. So a plan takes the place of the one that the same run had before, and
is put among the events that tell of assets, and nowhere else:

    SQLite        in the index, where Dagster looks for dates; the run's own log stays as it is
    PostgreSQL    in the one table of all events: the run's log has one plan of a date, the newest

The new one is there before the old one goes: a crash between the two leaves both, until the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.event_api import EventRecordsFilter
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from sqlalchemy import bindparam, delete

_PLANNED = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
_MADE = dg.DagsterEventType.ASSET_MATERIALIZATION

_events = SqlEventLogStorageTable.c
_OLDER = delete(SqlEventLogStorageTable).where(
    _events.dagster_event_type == _PLANNED.value,
    _events.asset_key == bindparam("of_asset"),
    _events.partition == bindparam("of_day"),
    _events.run_id == bindparam("by_run"),
    _events.id < bindparam("first"),
)


@dataclass(frozen=True)
class Plan:
    """That a run is to materialize a date of an asset, with what the run's log says of it."""

    run: dg.DagsterRun
    asset: str
    day: str
    words: str


def put(instance: dg.DagsterInstance, plans: Sequence[Plan]) -> None:
    """Make these what was said last of their dates."""
    storage = instance.event_log_storage
    if not plans:
        return
    if not isinstance(storage, SqlEventLogStorage):  # none of Dagster's own: it keeps them all
        for plan in plans:
            instance.report_dagster_event(_event(plan), plan.run.run_id)
        return
    with storage.index_transaction() as connection:
        made = [connection.execute(storage.prepare_insert_event(_entry(plan))) for plan in plans]
        first = made[0].inserted_primary_key
        assert first is not None  # a row was inserted
        older = [
            {
                "of_asset": dg.AssetKey(plan.asset).to_string(),
                "of_day": plan.day,
                "by_run": plan.run.run_id,
                "first": first[0],
            }
            for plan in plans
        ]
        connection.execute(_OLDER, older)


def planned(instance: dg.DagsterInstance, asset: str, days: Collection[str]) -> dict[str, str]:
    """Of these dates those of which a plan was the last that was said, and the run that made it."""
    if not days:
        return {}
    key = dg.AssetKey(asset)
    made = instance.get_latest_storage_id_by_partition(key, _MADE, set(days))
    plans = instance.get_latest_storage_id_by_partition(key, _PLANNED, set(days))
    standing = {at: day for day, at in plans.items() if at > made.get(day, 0)}
    if not standing:
        return {}
    wanted = EventRecordsFilter(_PLANNED, storage_ids=list(standing))
    found = instance.event_log_storage.get_event_records(wanted)
    return {standing[record.storage_id]: record.run_id for record in found}


def _entry(plan: Plan) -> EventLogEntry:
    return EventLogEntry(  # type: ignore[no-untyped-call]
        user_message="",
        level=logging.INFO,
        job_name=plan.run.job_name,
        run_id=plan.run.run_id,
        error_info=None,
        timestamp=time.time(),
        step_key=plan.asset,
        dagster_event=_event(plan),
    )


def _event(plan: Plan) -> DagsterEvent:
    key = AssetMaterializationPlannedData(dg.AssetKey(plan.asset), partition=plan.day)
    event = DagsterEvent.build_asset_materialization_planned_event(
        plan.run.job_name, plan.asset, key
    )
    return event._replace(message=plan.words)
