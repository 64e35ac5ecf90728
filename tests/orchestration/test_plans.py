"""Plans: a date is planned again and again by a run that is over, and its log stays as it is."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import uuid4

import dagster as dg
import pytest

from orchestration.dagster_storage.plans import Plan, planned, put
from tests.orchestration.runs import statements

FIRST = date(2026, 3, 5)
DAY = FIRST.isoformat()
MANY = [(FIRST + timedelta(days=n)).isoformat() for n in range(60)]


@pytest.fixture
def instance(kept_instance: dg.DagsterInstance) -> dg.DagsterInstance:
    """On either storage."""
    return kept_instance


def failed_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run that has failed, and said so."""
    run = dg.DagsterRun(
        job_name="micro_batch", run_id=str(uuid4()), status=dg.DagsterRunStatus.FAILURE
    )
    instance.run_storage.add_run(run)
    instance.report_engine_event("what to do", run)
    return run


def materialize(instance: dg.DagsterInstance, day: str = DAY) -> None:
    """As a later run does."""
    instance.report_runless_asset_event(dg.AssetMaterialization("events", partition=day))


def lines(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str]:
    """The log of a run."""
    return [entry.dagster_event.message or "" for entry in instance.all_logs(run.run_id)]  # type: ignore[union-attr]


def test_a_plan_is_what_was_said_last_until_the_date_is_materialized(
    instance: dg.DagsterInstance,
) -> None:
    """Of each date by itself, and by whichever run planned it last."""
    one, other = failed_run(instance), failed_run(instance)
    put(instance, [Plan(one, "events", day, "why") for day in MANY[:3]])
    put(instance, [Plan(other, "events", MANY[1], "why")])
    materialize(instance, MANY[2])
    assert planned(instance, "events", MANY) == {MANY[0]: one.run_id, MANY[1]: other.run_id}
    assert planned(instance, "staged_events", MANY) == {}
    assert planned(instance, "events", []) == {}
    instance.delete_run(other.run_id)  # with its plans: that of the other run stands
    assert planned(instance, "events", MANY) == dict.fromkeys(MANY[:2], one.run_id)


def test_the_log_of_a_run_that_plans_a_date_all_the_time_does_not_grow(
    instance: dg.DagsterInstance,
) -> None:
    """However many micro-batches later it has what it had; each of them turned the date green."""
    run = failed_run(instance)
    put(instance, [Plan(run, "events", DAY, "why")])
    before = len(lines(instance, run))
    for number in range(50):
        materialize(instance)
        assert planned(instance, "events", [DAY]) == {}
        put(instance, [Plan(run, "events", DAY, f"why, for the {number}th time")])
        assert planned(instance, "events", [DAY]) == {DAY: run.run_id}
    told = lines(instance, run)
    assert len(told) == before
    # SQLite keeps the plans of all runs elsewhere; in PostgreSQL they say themselves why.
    assert told[-1] in ("what to do", "why, for the 49th time")


def test_the_newest_run_of_an_asset_is_the_one_that_was_at_work(
    instance: dg.DagsterInstance,
) -> None:
    """A plan by a run that is over is none of its work."""
    run = failed_run(instance)
    materialize(instance)
    (before,) = instance.get_asset_records([dg.AssetKey("events")])
    put(instance, [Plan(run, "events", DAY, "why")])
    (after,) = instance.get_asset_records([dg.AssetKey("events")])
    assert after.asset_entry.last_run_id == before.asset_entry.last_run_id


def test_what_a_crash_left_of_older_plans_goes_with_the_next(
    instance: dg.DagsterInstance,
) -> None:
    """The new one is there first; those of other dates, assets and runs stay."""
    one, other = failed_run(instance), failed_run(instance)
    left = [Plan(one, "events", DAY, "why")] * 3
    beside = [
        Plan(one, "events", MANY[1], "why"),
        Plan(one, "dead_letters", DAY, "why"),
        Plan(other, "events", DAY, "why"),
    ]
    put(instance, [*left, *beside])  # as if each were put by itself, and never the last half done
    put(instance, [Plan(one, "events", DAY, "why")])
    assert len(rows(instance)) == 1 + len(beside)


def rows(instance: dg.DagsterInstance) -> list[object]:
    """The plans that there are."""
    storage = instance.event_log_storage
    wanted = dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    return list(storage.get_event_records(wanted))


def test_sixty_dates_are_asked_for_as_one_is(instance: dg.DagsterInstance) -> None:
    """In bulk, for each asset."""
    run = failed_run(instance)
    put(instance, [Plan(run, "events", day, "why") for day in MANY])
    with statements("event_logs") as one:
        assert len(planned(instance, "events", MANY[:1])) == 1
    with statements("event_logs") as all_:
        assert len(planned(instance, "events", MANY)) == 60
    assert len(all_) == len(one) > 0
