"""Waiting dates: what Dagster makes of a date of which a batch waits for a person."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from assets import checks
from assets.pipeline.batch import Batch
from assets.pipeline.failpoints import VARIABLE
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import release_batch, retry_batch
from assets.waiting_dates import show_waiting
from orchestration.alarms.conditions import look
from orchestration.cadence_triggers import Lookout, decide
from orchestration.definitions import definitions
from orchestration.housekeeping import runs
from orchestration.ledger.batches import waiting_for_a_person
from orchestration.partitions import arrival_dates
from orchestration.resources import TOPIC_TAG
from orchestration.settings import Settings
from orchestration.tellers import WAITS_TAG, Teller, open_tellers, tell, teller_of, told_of_waiting
from tests.orchestration.runs import run, statements
from tests.records import Sent, delete_before, value_of
from tests.stack import ROOT, Stack

NewStack = Callable[..., Stack]

TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
LONGEST_TAG = 2_600
"""Bytes, about, that PostgreSQL's index of tags takes beside a name."""
LOADED, MISSING, WAITS = "materialized", "missing", "failed"


@pytest.fixture
def stack(new_stack: NewStack) -> Stack:
    """One whose records come in on the day that a test says, and which is quick to hold a batch."""
    config = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
    return new_stack(hold_over_records=2).make_topic(1, **config)


def send(stack: Stack, day: date, *values: bytes) -> list[tuple[int, int]]:
    """Put values into Kafka as of some time of a day that is over."""
    at = min(datetime.combine(day, time(12), UTC), datetime.now(UTC))
    milliseconds = int(at.timestamp() * 1000)
    return stack.send(*(Sent(value, timestamp=milliseconds) for value in values))


def hold(stack: Stack, day: date, first: int = 1_000) -> None:
    """Put so many bad records beside a good one that their batch will be held."""
    send(stack, day, value_of(first), b"no json", b"nor this", f"nor that {first}".encode())


def check(stack: Stack, instance: dg.DagsterInstance) -> ExecuteInProcessResult:
    """A run of the checks."""
    job = definitions(stack.settings).resolve_job_def("checks")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def reason(result: ExecuteInProcessResult) -> str:
    """Why a run failed, at its last step."""
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_key == "audit"
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    told = failed.step_failure_data.user_failure_data
    assert told is not None
    return told.description or ""


def colours(instance: dg.DagsterInstance, day: date) -> tuple[str, str, str]:
    """What a date is for the three assets, by what Dagster has kept of it, and looked up afresh."""
    kept = tuple(_colour(instance, asset, day) for asset in ASSETS)
    instance.wipe_asset_cached_status([dg.AssetKey(asset) for asset in ASSETS])
    assert kept == tuple(_colour(instance, asset, day) for asset in ASSETS)
    return kept  # type: ignore[return-value]


ASSETS = ("staged_events", "events", "dead_letters")


def _colour(instance: dg.DagsterInstance, asset: str, day: date) -> str:
    found = get_and_update_asset_status_cache_value(instance, dg.AssetKey(asset), arrival_dates)
    if found is None:
        return MISSING
    for name, subset in (
        ("in progress", found.deserialize_in_progress_partition_subsets(arrival_dates)),
        (WAITS, found.deserialize_failed_partition_subsets(arrival_dates)),
        (LOADED, found.deserialize_materialized_partition_subsets(arrival_dates)),
    ):
        if day.isoformat() in subset:
            return name
    return MISSING


def waiting(stack: Stack) -> Batch:
    """The one batch that waits for a person."""
    (batch,) = waiting_for_a_person(stack.ledger, *stack.settings.topics)
    return batch


def materializations(
    instance: dg.DagsterInstance, asset: str, day: date
) -> list[dict[str, object]]:
    """What was told of a date, the newest first."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[day.isoformat()])
    return [
        {name: entry.value for name, entry in told.metadata.items()}
        for record in instance.fetch_materializations(wanted, limit=100).records
        if (told := record.asset_materialization) is not None
    ]


def test_a_date_is_red_until_its_held_batch_is_loaded(
    stack: Stack, kept_instance: dg.DagsterInstance
) -> None:
    """Once a run is red, with what to do; those after it are green, and the date is not."""
    instance = kept_instance
    hold(stack, YESTERDAY)
    first = run(stack, instance, YESTERDAY)
    held = waiting(stack)
    assert not first.success
    assert f"tidemark release {held.batch_id}" in reason(first)
    assert len(first.get_asset_check_evaluations()) == 4
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    told = len(instance.all_logs(first.run_id))

    send(stack, YESTERDAY, *map(value_of, range(5)))
    second = run(stack, instance, YESTERDAY)
    assert second.success
    assert materializations(instance, "events", YESTERDAY)[0]["rows"] == 5
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    assert len(instance.all_logs(first.run_id)) == told  # what to do stays at its end
    (asset,) = instance.get_asset_records([dg.AssetKey("events")])
    assert asset.asset_entry.last_run_id == second.run_id
    planned = instance.get_latest_planned_materialization_info(
        dg.AssetKey("events"), YESTERDAY.isoformat()
    )
    assert planned is not None
    assert planned.run_id == first.run_id  # its page leads to the run that says why

    send(stack, TODAY, *map(value_of, range(5, 10)))
    assert run(stack, instance, TODAY).success
    assert colours(instance, TODAY) == (LOADED, LOADED, LOADED)
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)

    release_batch(stack.worker(), held.batch_id)
    assert check(stack, instance).success
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)  # it is not loaded yet
    assert run(stack, instance, YESTERDAY).success
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    assert materializations(instance, "events", YESTERDAY)[0]["batch_id"] == held.batch_id


def test_a_run_that_carries_another_date_reddens_that_of_the_batch(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """The date for which a run was started is green, where it has all of it."""
    send(stack, YESTERDAY, *map(value_of, range(5)))
    hold(stack, TODAY)
    assert str(TODAY) in reason(run(stack, instance, YESTERDAY))
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    assert colours(instance, TODAY) == (LOADED, WAITS, WAITS)


def test_what_failed_to_tell_is_no_failure_of_the_cadence(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """No pause follows, no alarm of its own; a batch is told of once, and again if retried."""
    send(stack, YESTERDAY, *map(value_of, range(5)))
    lost = stack.plan()
    assert lost is not None
    send(stack, YESTERDAY, *map(value_of, range(5, 8)))
    delete_before(stack.kafka, stack.settings.topic, {0: 3})
    told = run(stack, instance, YESTERDAY)
    assert lost.batch_id in reason(told)
    assert "docs/gaps.md" in reason(told)
    # Nothing is staged of a gap, and the date has a batch that is.
    assert colours(instance, YESTERDAY) == (WAITS, WAITS, WAITS)
    send(stack, YESTERDAY, value_of(8))
    assert isinstance(decide(instance, Lookout(stack.settings)), dg.RunRequest)
    seen = look(stack.settings, stack.ledger, stack.worker().topics, instance)
    assert f"gap/{lost.batch_id}" in seen.wrong
    assert "runs" not in seen.wrong
    assert run(stack, instance, YESTERDAY).success

    retry_batch(stack.worker(), lost.batch_id)
    again = run(stack, instance, YESTERDAY)
    assert lost.batch_id in reason(again)
    assert colours(instance, YESTERDAY) == (WAITS, WAITS, WAITS)


def test_a_date_that_somebody_asks_for_is_not_said_to_be_there(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """Materialize of a date that lacks a batch fails, as often as one asks, and says why."""
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    for _ in range(2):
        result = run(stack, instance, YESTERDAY, "__ASSET_JOB", *ASSETS)
        assert waiting(stack).batch_id in reason(result)
        assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
        by_hand = instance.get_run_by_id(result.run_id)
        assert by_hand is not None
        assert told_of_waiting(by_hand)
        assert len(open_tellers(instance, stack.settings.topic)) == 1  # who told of it first
    assert run(stack, instance, TODAY, "__ASSET_JOB", *ASSETS).success


@pytest.mark.parametrize("by", ["micro_batch", "checks"])
def test_what_made_a_date_green_in_between_does_not_stand(
    stack: Stack, instance: dg.DagsterInstance, by: str
) -> None:
    """A materialization by something else, as housekeeping's, is followed by what is true.

    By a micro-batch that brings it something; one of other dates leaves it to the checks.
    """
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    for asset in ASSETS:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=YESTERDAY.isoformat())
        )
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    assert run(stack, instance, TODAY).success
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    result = check(stack, instance) if by == "checks" else run(stack, instance, YESTERDAY)
    assert result.success
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)


def test_what_was_loaded_by_a_command_is_green_after_the_checks(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """No micro-batch tells of it; the run that told of the batch says then that it is over."""
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    open_ = dg.RunsFilter(tags={WAITS_TAG: "open"})
    assert instance.get_runs_count(open_) == 1
    release_batch(stack.worker(), waiting(stack).batch_id)
    stack.run()
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    assert check(stack, instance).success
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    (told, *_) = materializations(instance, "events", YESTERDAY)
    assert (told["batches_there_already"], told["dagster/partition_row_count"]) == (1, 1)
    assert instance.get_runs_count(open_) == 0
    count = len(materializations(instance, "events", YESTERDAY))
    assert check(stack, instance).success
    assert len(materializations(instance, "events", YESTERDAY)) == count


def test_dates_that_share_a_partition_are_red_until_none_of_them_waits(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """Those from before the first partition are shown under it, those of imports, say."""
    days = date(2025, 5, 31), date(2025, 6, 30)
    for number, day in enumerate(days):
        hold(stack, day, 1_000 + 10 * number)
    first = arrival_dates.start.date()
    run(stack, instance, first)
    held = waiting_for_a_person(stack.ledger, *stack.settings.topics)
    assert [batch.arrival_date for batch in held] == list(days)
    for batch, colour in zip(held, (WAITS, LOADED), strict=True):
        release_batch(stack.worker(), batch.batch_id)
        stack.run()
        for _ in range(2):
            assert check(stack, instance).success
            assert colours(instance, first) == (LOADED, colour, colour)
    (told, before) = materializations(instance, "events", first)
    assert told["batches_there_already"] == 2
    assert before["batches_there_already"] == 0


def test_a_batch_that_is_decided_while_the_checks_run_is_green_after_them(
    stack: Stack, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is looked up when they are done: else nobody would look at its date again."""
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    checked = checks._checked

    def decided_meanwhile(*given: Any) -> Iterator[dg.AssetCheckResult]:
        yield from checked(*given)
        release_batch(stack.worker(), waiting(stack).batch_id)
        stack.run()

    monkeypatch.setattr(checks, "_checked", decided_meanwhile)
    assert check(stack, instance).success
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    assert instance.get_runs_count(dg.RunsFilter(tags={WAITS_TAG: "open"})) == 0


def test_one_run_tells_of_any_number_of_batches(
    new_stack: NewStack, kept_instance: dg.DagsterInstance
) -> None:
    """In tags that PostgreSQL has room for in its index; none is told of twice."""
    instance = kept_instance
    stack = new_stack(hold_over_records=0, batch_max_records=1).make_topic(1)
    stack.send(*[b"no json"] * 120)
    told = run(stack, instance, TODAY)
    assert "120 batches wait for a person" in reason(told)
    (teller,) = instance.get_runs(dg.RunsFilter(tags={WAITS_TAG: "open"}))
    assert max(len(value) for value in teller.tags.values()) < LONGEST_TAG
    assert run(stack, instance, TODAY).success
    note = str(materializations(instance, "events", TODAY)[0]["note"])
    assert "and 117 more: `tidemark status`" in note
    assert len(note) < 2_000


def test_a_batch_that_a_command_met_is_told_of_by_the_next_micro_batch(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """The checks tell of nothing, being for no date; a micro-batch of any date does."""
    hold(stack, YESTERDAY)
    stage_batches(stack.worker())
    assert check(stack, instance).success
    assert colours(instance, YESTERDAY) == (MISSING, MISSING, MISSING)
    assert waiting(stack).batch_id in reason(run(stack, instance, TODAY))
    assert colours(instance, YESTERDAY) == (MISSING, WAITS, WAITS)


def test_a_date_that_is_rebuilt_stays_red(stack: Stack, instance: dg.DagsterInstance) -> None:
    """The rebuild says what is not in it; the date of the table is what it was."""
    send(stack, YESTERDAY, *map(value_of, range(5)))
    assert run(stack, instance, YESTERDAY).success
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    assert run(stack, instance, YESTERDAY, "__ASSET_JOB", "rebuilt_events").success
    (told,) = materializations(instance, "rebuilt_events", YESTERDAY)
    assert told["dagster/partition_row_count"] == 5
    assert f"batch {waiting(stack).batch_id}" in str(told["not_in_it"])
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    release_batch(stack.worker(), waiting(stack).batch_id)
    assert run(stack, instance, YESTERDAY).success
    assert colours(instance, YESTERDAY) == (LOADED, LOADED, LOADED)
    run(stack, instance, YESTERDAY, "__ASSET_JOB", "rebuilt_events")
    assert "not_in_it" not in materializations(instance, "rebuilt_events", YESTERDAY)[0]


def test_what_kafka_refuses_is_said_beside_what_waits(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """In one failure, which is no mere telling: the cadence pauses. No batch is told of again."""
    hold(stack, YESTERDAY)
    stage_batches(stack.worker())
    lost = {"security.protocol": "ssl", "ssl.ca.location": "/nowhere/ca.pem"}
    refused = Stack(Settings(**stack.settings.model_dump() | {"kafka_options": lost}))
    words = reason(run(refused, instance, YESTERDAY))
    assert "ssl.ca.location failed" in words
    assert f"tidemark release {waiting(stack).batch_id}" in words
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    seen = look(stack.settings, stack.ledger, stack.worker().topics, instance)
    assert "runs" in seen.wrong
    send(stack, YESTERDAY, *map(value_of, range(5)))
    paused = decide(instance, Lookout(stack.settings))
    assert isinstance(paused, dg.SkipReason)
    assert "the last 1 runs failed" in (paused.skip_message or "")
    assert run(stack, instance, YESTERDAY).success
    refused.ledger.dispose()


def test_runs_that_are_none_of_the_ledgers_are_left_alone(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """Of another topic, or of batches that this ledger does not know: others are to end them."""
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    (ours,) = open_tellers(instance, stack.settings.topic)
    theirs = [add_teller(instance, "another", ours), add_teller(instance, "of-them", None)]
    instance.add_run_tags(theirs[1].run_id, {TOPIC_TAG: stack.settings.topic})
    release_batch(stack.worker(), waiting(stack).batch_id)
    stack.run()
    assert check(stack, instance).success
    still = instance.get_runs(dg.RunsFilter(tags={WAITS_TAG: "open"}))
    assert {each.run_id for each in still} == {each.run_id for each in theirs}


def add_teller(
    instance: dg.DagsterInstance,
    topic: str,
    like: Teller | None,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.FAILURE,
) -> dg.DagsterRun:
    """A run that has told of the batches of another one, or of one that nobody here knows."""
    told = like.told if like else frozenset({f"{'0' * 24}/0"})
    added = dg.DagsterRun(
        job_name="micro_batch", run_id=str(uuid4()), status=status, tags={TOPIC_TAG: topic}
    )
    instance.run_storage.add_run(added)
    tell(instance, Teller(added, told), opens=True, alone=True)
    return added


def test_a_run_that_is_executed_again_is_not_among_those_that_tell(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """It begins with the tags of the one that failed; the next checks see that it is none."""
    hold(stack, YESTERDAY)
    first = run(stack, instance, YESTERDAY)
    (teller,) = open_tellers(instance, stack.settings.topic)
    for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
        again = dg.DagsterRun(
            job_name="micro_batch", run_id=str(uuid4()), status=status, tags=teller.run.tags
        )
        instance.run_storage.add_run(again)
        assert not told_of_waiting(again)
    assert check(stack, instance).success
    (still,) = instance.get_runs(dg.RunsFilter(tags={WAITS_TAG: "open"}))
    assert still.run_id == first.run_id
    tell(instance, teller_of(again, [waiting(stack)]), opens=False, alone=True)
    assert [one.run.run_id for one in open_tellers(instance, stack.settings.topic)] == [
        first.run_id
    ]
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)


def test_housekeeping_leaves_who_tells_of_what_waits(
    stack: Stack, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All around it goes, however many stay: after it nothing is told of again."""
    monkeypatch.setattr(runs, "_AT_ONCE", 2)
    hold(stack, YESTERDAY)
    first = run(stack, instance, YESTERDAY)
    (ours,) = open_tellers(instance, stack.settings.topic)
    stay = {first.run_id, *(add_teller(instance, "another", ours).run_id for _ in range(4))}
    assert run(stack, instance, TODAY).success
    add_teller(instance, "another", ours, dg.DagsterRunStatus.CANCELED)
    stay.add(add_teller(instance, "another", ours).run_id)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert runs.old_runs(instance, tomorrow) == 2
    assert runs.let_go_of_runs(instance, tomorrow, 60) == 2
    assert runs.old_runs(instance, tomorrow) == 0
    assert {each.run_id for each in instance.get_runs()} == stay
    assert check(stack, instance).success
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    assert run(stack, instance, YESTERDAY).success


def test_a_micro_batch_asks_dagster_of_none_but_its_own_dates(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """However many others wait; it goes on with what the one before it had made green."""
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    held, topic = waiting(stack), stack.settings.topic
    days = [YESTERDAY - timedelta(days=number) for number in range(1, 60)]
    others = [replace(held, batch_id=f"{day:%Y%m%d}", arrival_date=day) for day in days]
    add_teller(instance, topic, teller_of(instance.get_runs()[0], others))
    later = instance.get_run_by_id(run(stack, instance, YESTERDAY).run_id)
    context: Any = SimpleNamespace(
        instance=instance, run=later, partition_key=YESTERDAY.isoformat()
    )
    asked = []
    for those in ([held], [held, *others]):
        with statements("event_logs") as said:
            told = show_waiting(context, stack.worker(), those, by_hand=False, alone=True)
        assert told == ""
        asked.append(len(said))
    assert asked[0] == asked[1] > 0
    assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
    assert colours(instance, days[0]) == (MISSING, MISSING, MISSING)


def test_who_asks_for_an_asset_is_told_of_what_that_one_lacks(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    """Of what another one lacks says its own date."""
    hold(stack, YESTERDAY)
    run(stack, instance, YESTERDAY)
    lacks_letters = replace(waiting(stack), loaded_at=1)
    asked = []
    for assets in (["events"], ["dead_letters"]):
        asked_for = dg.DagsterRun(job_name="__ASSET_JOB", run_id=str(uuid4()))
        instance.run_storage.add_run(asked_for)
        for asset in assets:
            materialize(instance, asked_for, asset, YESTERDAY)
        context: Any = SimpleNamespace(
            instance=instance, run=asked_for, partition_key=YESTERDAY.isoformat()
        )
        asked.append(
            show_waiting(context, stack.worker(), [lacks_letters], by_hand=True, alone=True)
        )
    assert asked[0] == ""
    assert lacks_letters.batch_id in asked[1]


def materialize(instance: dg.DagsterInstance, by: dg.DagsterRun, asset: str, day: date) -> None:
    """As a run does."""
    made = StepMaterializationData(dg.AssetMaterialization(asset, partition=day.isoformat()))
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
    event = dg.DagsterEvent(kind, by.job_name, step_key=asset, event_specific_data=made)
    instance.report_dagster_event(event, by.run_id)


def test_a_run_killed_before_it_has_told_leaves_it_to_the_next(
    stack: Stack, tmp_path: Path
) -> None:
    """kill -9 when the date is red, and nothing says yet that it was told: it is told."""
    hold(stack, YESTERDAY)
    home = tmp_path / "dagster"
    home.mkdir()
    environment = {
        **os.environ,
        **stack.settings.environment(),
        "DAGSTER_HOME": str(home),
        VARIABLE: "date-is-red",
    }
    command = [sys.executable, "-m", "dagster", "job", "execute"]
    command += ["-m", "orchestration.definitions", "-j", "micro_batch"]
    command += ["--tags", f'{{"dagster/partition": "{YESTERDAY}"}}']
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        assert colours(instance, YESTERDAY) == (LOADED, "in progress", "in progress")
        (killed,) = instance.get_runs()
        instance.report_run_failed(killed)  # as the run launcher does
        assert waiting(stack).batch_id in reason(run(stack, instance, YESTERDAY))
        assert colours(instance, YESTERDAY) == (LOADED, WAITS, WAITS)
