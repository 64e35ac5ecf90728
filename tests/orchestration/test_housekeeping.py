"""Housekeeping: what has served its time goes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from pydantic import ValidationError

from assets.pipeline.errors import BatchError
from assets.pipeline.rebuild import back, rebuild
from assets.pipeline.shadow import PREVIOUS
from orchestration.definitions import definitions
from orchestration.housekeeping.parts import Parts
from orchestration.housekeeping.replaced import let_go_of_replaced
from orchestration.housekeeping.runs import let_go_of_runs
from orchestration.settings import Settings
from tests.stack import Stack

NewStack = Callable[..., Stack]

ASSETS = ("staged_events", "events", "dead_letters")
TODAY = datetime.now(UTC).date()
TOMORROW = datetime.now(UTC) + timedelta(days=1)


def files_of(instance: dg.DagsterInstance, run_id: str) -> list[Path]:
    """What stands of a run on the disk."""
    return list(Path(instance.root_directory).rglob(f"*{run_id}*"))


def test_old_runs_go_and_their_partitions_stay_materialized(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """With what each partition was last said to hold; the disk has nothing of them any more."""
    stack = new_stack().make_topic()
    job = definitions(stack.settings).resolve_job_def("micro_batch")
    runs = []
    for numbers in (range(5), range(5, 8)):
        stack.send_numbers(numbers)
        runs.append(job.execute_in_process(instance=instance, partition_key=str(TODAY)))
    young = instance.create_run_for_job(job, tags={"dagster/partition": str(TODAY)})  # at work
    told = {name: told_of(instance, name) for name in ASSETS}
    assert told["events"]["rows"] == 3

    assert let_go_of_runs(instance, datetime.now(UTC) - timedelta(days=1), 60) == 0
    assert let_go_of_runs(instance, TOMORROW, 60) == 2
    assert [run.run_id for run in instance.get_runs()] == [young.run_id]
    for run in runs:
        assert files_of(instance, run.run_id) == []
    for name in ASSETS:
        assert instance.get_materialized_partitions(dg.AssetKey(name)) == {str(TODAY)}
        assert told_of(instance, name) == told[name]
    assert let_go_of_runs(instance, TOMORROW, 60) == 0


def told_of(instance: dg.DagsterInstance, name: str) -> dict[str, object]:
    """What was last said of today's partition of an asset."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(name), asset_partitions=[str(TODAY)])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization is not None
    return {key: entry.value for key, entry in record.asset_materialization.metadata.items()}


def test_what_was_replaced_is_kept_for_its_days(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """Then it goes, by the daily asset; the table keeps every row."""
    stack = new_stack(keep_replaced_days=0, keep_runs_days=0).make_topic()
    stack.send_numbers(range(5))
    stack.run()
    worker = stack.worker()
    assert let_go_of_replaced(worker, 0).count == 0
    rebuild(worker, TODAY)
    assert let_go_of_replaced(worker, 7).count == 0
    assert stack.rows(f"SELECT count() FROM {{database}}.{PREVIOUS}") == [(5,)]
    made = definitions(stack.settings)
    ran = made.resolve_job_def("daily_housekeeping").execute_in_process(instance=instance)
    (told,) = ran.asset_materializations_for_node("housekeeping")
    found = {name: entry.value for name, entry in told.metadata.items()}
    assert (found["replaced_dates_let_go"], found["rows"], found["runs_of_Dagster_let_go"]) == (
        1,
        5,
        0,
    )
    (check,) = ran.get_asset_check_evaluations()
    assert check.passed
    assert stack.rows("SELECT count() FROM {database}.events") == [(5,)]
    with pytest.raises(BatchError, match="nothing is kept"):
        back(worker, TODAY)


@pytest.mark.parametrize(("parts", "too_many"), [(500, False), (501, True)])
def test_half_the_limit_of_parts_is_too_many(parts: int, too_many: bool) -> None:
    """While there is time to do something about it."""
    assert Parts("events", "2026-11-24", parts, 1_000, 0, 0).are_too_many is too_many


def test_its_time_is_cron(settings: Callable[..., Settings]) -> None:
    """Of five fields, in UTC, running by default."""
    (schedule,) = (
        schedule
        for schedule in definitions(settings(housekeeping_cron="0 5 * * 1"))
        .get_repository_def()
        .schedule_defs
        if schedule.name == "housekeeping_schedule"
    )
    assert schedule.cron_schedule == "0 5 * * 1"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    with pytest.raises(ValidationError, match="write five fields"):
        settings(housekeeping_cron="daily")
