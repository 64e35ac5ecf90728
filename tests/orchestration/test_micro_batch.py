"""The micro-batch as Dagster runs it: what it shows of each batch, and how it fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from logging import ERROR
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

from assets.pipeline import commit
from assets.pipeline import topic as kafka_topic
from assets.pipeline.batch import Kind, State
from assets.pipeline.circuit import LOAD
from assets.pipeline.errors import ClickHouseAway
from assets.pipeline.failpoints import VARIABLE
from assets.pipeline.reasons import SENTENCES, Reason
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import release_batch
from assets.staged_events import _with_stagers
from orchestration.cadence_triggers import Lookout, decide
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.backoffs import batch_name, note_failure
from orchestration.ledger.connection import now_us
from orchestration.ledger.tables import backoffs, lanes
from orchestration.settings import Settings
from tests.conftest import unused_port
from tests.orchestration.conftest import until
from tests.orchestration.runs import run
from tests.pids import alive, await_ended, process_state
from tests.records import Sent, value_of
from tests.stack import ROOT, ClickHouseServer, Stack

NOW = datetime.now(UTC)
TODAY = NOW.date().isoformat()
ASSETS = ("staged_events", "events", "dead_letters")


def _run(
    stack: Stack, instance: dg.DagsterInstance, day: str = TODAY, job: str = "micro_batch"
) -> ExecuteInProcessResult:
    return run(stack, instance, date.fromisoformat(day), job)


def _told(instance: dg.DagsterInstance, asset: str) -> list[tuple[str | None, dict[str, Any]]]:
    """Partition and metadata of each materialization, the first one first."""
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=100, ascending=True).records
    return [
        (
            record.partition_key,
            {name: _plain(entry) for name, entry in materialized.metadata.items()},
        )
        for record in records
        if (materialized := record.asset_materialization) is not None
    ]


def _plain(entry: dg.MetadataValue[Any]) -> Any:
    if isinstance(entry, dg.TableMetadataValue):
        return [record.data for record in entry.records]
    return entry.value


def _checks(result: ExecuteInProcessResult) -> dict[tuple[str, str], bool]:
    return {
        (evaluation.asset_key.to_user_string(), evaluation.check_name): evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
    }


def _assert_whole(stack: Stack, sent: list[tuple[int, int]]) -> None:
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_a_batch_is_told_of_with_its_lineage(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Each asset has one materialization for the batch: who, what, how much, how long, where."""
    stack = new_stack().make_topic(2)
    sent = stack.send_numbers(range(100), 2)
    sent += stack.send(Sent(b"no json", 0), Sent(value_of(0), 1), Sent(None, 1))
    result = _run(stack, instance)
    assert result.success
    [batch] = stack.batches()

    [(partition, staged)] = _told(instance, "staged_events")
    assert partition == TODAY
    assert staged["batch_id"] == batch.batch_id
    assert {name: staged[name] for name in ("offsets", "ok", "rejected", "duplicate")} == {
        "offsets": 103,
        "ok": 100,
        "rejected": 1,
        "duplicate": 1,
    }
    assert (staged["tombstone"], staged["absent"], staged["attempt"]) == (1, 0, 1)
    assert staged["dagster/partition_row_count"] == 100
    assert staged["bytes_read"] > 1000
    assert staged["rows_per_second"] > 0
    assert staged["seconds_read"] > 0
    assert 0 <= staged["lag_seconds_newest"] <= staged["lag_seconds_oldest"]
    assert [
        (row["partition"], row["start"], row["end"], row["ok"]) for row in staged["ranges"]
    ] == [
        (0, 0, 51, 50),
        (1, 0, 52, 50),
    ]
    assert Path(staged["file"]).is_file()

    [(partition, loaded)] = _told(instance, "events")
    assert partition == TODAY
    assert (loaded["batch_id"], loaded["rows"]) == (batch.batch_id, 100)
    assert loaded["dagster/row_count"] == loaded["dagster/partition_row_count"] == 100
    assert batch.batch_id in loaded["in_clickhouse"]
    assert loaded["lag_seconds_oldest"] >= staged["lag_seconds_oldest"]

    [(partition, dead)] = _told(instance, "dead_letters")
    assert (partition, dead["batch_id"], dead["rows"]) == (TODAY, batch.batch_id, 1)
    meaning = SENTENCES[Reason.NOT_JSON]
    assert dead["reasons"] == [{"reason": "not_json", "records": 1, "meaning": meaning}]

    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["tidemark/topic"] == stack.settings.topic
    assert run.tags["tidemark/batch_id"] == batch.batch_id
    assert run.tags["tidemark/ranges"] == " ".join(map(str, batch.ranges))
    assert stack.rows("SELECT DISTINCT _run_id FROM {database}.events") == [(run.run_id,)]
    assert _checks(result) == {
        ("events", "balance"): True,
        ("events", "lanes"): True,
        ("events", "older_batches"): True,
        ("dead_letters", "balance"): True,
    }
    assert stack.account().places == dict.fromkeys(sent[:-1], 1)  # the last is a tombstone


def test_a_run_tells_how_many_stagers_worked(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Its own entry has their number and their memory; one that needed none says nothing."""
    stack = new_stack(batch_max_records=50, stagers=2).make_topic(2)
    sent = stack.send_numbers(range(200), 2)
    assert _run(stack, instance).success
    sent += stack.send_numbers(range(200, 220), 2)
    assert _run(stack, instance).success
    told = [metadata for _, metadata in _told(instance, "staged_events")]
    assert len(told) == len(stack.batches())
    (of_stagers,) = (metadata for metadata in told if "stagers" in metadata)
    assert of_stagers["stagers"] == 2
    assert of_stagers["stagers_peak_bytes"] > 50 << 20
    _assert_whole(stack, sent)


def test_what_a_run_tells_of_its_stagers_takes_nothing_from_its_entry() -> None:
    """Whatever else the entry has stays."""
    result: dg.MaterializeResult[None] = dg.MaterializeResult(
        metadata={"rows": 1},
        data_version=dg.DataVersion("one"),
        tags={"a": "b"},
        check_results=[dg.AssetCheckResult(passed=True)],
    )
    told = _with_stagers(result, {"host:1": 5, "host:2": 6})
    assert told.metadata == {"rows": 1, "stagers": 2, "stagers_peak_bytes": 11}
    assert (told.data_version, told.tags) == (result.data_version, result.tags)
    assert told.check_results == result.check_results


def test_a_held_batch_turns_the_check_red_until_it_is_released(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """The log says what to do, and `balance` is red; the first run fails, those after it do not."""
    stack = new_stack(hold_over_records=2).make_topic()
    stack.send(value_of(0), b"no json", b"nor this", b"nor that")
    result = _run(stack, instance)
    assert not result.success
    [batch] = stack.batches()
    assert _checks(result) == {
        ("events", "balance"): False,
        ("events", "lanes"): True,
        ("events", "older_batches"): True,
        ("dead_letters", "balance"): True,
    }
    [evaluation] = [each for each in result.get_asset_check_evaluations() if not each.passed]
    assert f"batch {batch.batch_id} held: 3 of 4 records" in str(evaluation.description)
    [(_, staged)] = _told(instance, "staged_events")
    assert f"tidemark release {batch.batch_id}" in staged["held"]
    errors = [
        entry.user_message for entry in instance.all_logs(result.run_id) if entry.level >= ERROR
    ]
    assert any(f"batch {batch.batch_id} is held: 3 of 4" in message for message in errors)
    result = _run(stack, instance)
    assert result.success
    assert not _checks(result)["events", "balance"]

    release_batch(stack.worker(), batch.batch_id)
    result = _run(stack, instance)
    assert _checks(result)["events", "balance"]
    [(_, loaded)] = [told for told in _told(instance, "events") if "batch_id" in told[1]]
    assert (loaded["batch_id"], loaded["rows"]) == (batch.batch_id, 1)


def test_the_link_to_the_rows_of_a_batch_works(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Whoever follows the link sees the rows of that batch, without anything to install."""
    import httpx

    stack = new_stack().make_topic()
    stack.send_numbers(range(3))
    assert _run(stack, instance).success
    [(_, loaded)] = _told(instance, "events")
    answer = httpx.get(loaded["in_clickhouse"])
    assert answer.status_code == 200
    assert answer.text.count(loaded["batch_id"]) == 3
    pieces = re.split("[-?]", loaded["in_clickhouse"])  # where the UI may break a line
    assert max(map(len, pieces)) <= 72


def test_the_topic_is_observed(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Each run tells where the topic ends, up to where it is read, and the lag."""
    stack = new_stack().make_topic(2)
    stack.send_numbers(range(10), 2)
    assert _run(stack, instance).success
    key = dg.AssetKey(["kafka", stack.settings.topic])
    [record] = instance.fetch_observations(key, limit=10).records
    assert record.asset_observation is not None
    seen = {name: entry.value for name, entry in record.asset_observation.metadata.items()}
    assert (seen["end_offsets"], seen["read_up_to"], seen["unread"]) == (10, 10, 0)
    assert (seen["records_read"], seen["batches"]) == (10, 1)
    assert seen["lag_seconds"] >= 0
    # Staged by this run and not loaded yet: what is complete ends at the oldest of these.
    assert (seen["not_loaded"], seen["not_loaded_bytes"] > 1_000) == (10, True)
    assert 0 < seen["oldest_not_loaded_seconds"] == seen["complete_age_seconds"]
    assert seen["all_topics_complete_before"] == seen["complete_before"]


def test_several_batches_of_several_dates_each_have_their_own_entry(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """A run that drains over midnight tells of each batch under that batch's date, and no more."""
    stack = new_stack(batch_max_records=10)
    stack.make_topic(1, **{"message.timestamp.type": "CreateTime"})
    yesterday = NOW - timedelta(days=1)
    sent = stack.send(
        *(Sent(value_of(n), 0, int(yesterday.timestamp() * 1000)) for n in range(25)),
        *(Sent(value_of(n), 0, int(NOW.timestamp() * 1000)) for n in range(25, 40)),
    )
    assert _run(stack, instance, yesterday.date().isoformat()).success
    batches = stack.batches()
    assert [batch.offsets for batch in batches] == [10, 10, 5, 10, 5]
    for asset in ASSETS:
        told = _told(instance, asset)
        assert sorted((partition, entry["batch_id"]) for partition, entry in told) == sorted(
            (batch.arrival_date.isoformat(), batch.batch_id) for batch in batches
        )
    _assert_whole(stack, sent)


def test_a_date_without_anything_new_says_so(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Materializing a date again, by hand or in a backfill, changes nothing and proves it again."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    assert _run(stack, instance).success
    again = _run(stack, instance, job="__ASSET_JOB")
    assert again.success
    assert _checks(again)["events", "balance"]
    for asset in ASSETS:
        first, second = _told(instance, asset)
        assert first[1]["batch_id"]
        assert (second[1]["batches"], second[1]["batches_there_already"]) == (0, 1)
        assert second[1]["dagster/partition_row_count"] == first[1]["dagster/partition_row_count"]
    _assert_whole(stack, sent)


def test_rows_that_are_held_are_not_counted_as_loaded(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Of a date of which a batch is held, each asset says how many rows it has itself."""
    stack = new_stack(hold_over_records=3).make_topic()
    stack.send_numbers(range(10))
    assert _run(stack, instance).success
    stack.send_numbers(range(10, 15))
    stack.send(*[b"no json"] * 5)
    _run(stack, instance)
    rows = {asset: _told(instance, asset)[-1][1]["dagster/partition_row_count"] for asset in ASSETS}
    assert rows == {"staged_events": 15, "events": 10, "dead_letters": 0}


def test_a_run_for_a_past_date_carries_what_is_new(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Whatever date a run was started for, records end up under the date they arrived on."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    past = (NOW - timedelta(days=5)).date().isoformat()
    assert _run(stack, instance, past, job="__ASSET_JOB").success
    told = dict(_told(instance, "events"))
    assert told[TODAY]["rows"] == 10
    assert (told[past]["batches"], told[past]["dagster/partition_row_count"]) == (0, 0)
    _assert_whole(stack, sent)


def test_clickhouse_away_is_tried_again_in_the_same_run(
    new_stack: Callable[..., Stack],
    instance: dg.DagsterInstance,
    new_clickhouse: Callable[[], ClickHouseServer],
) -> None:
    """A step that meets a closed door waits and tries again; both tries are on record."""
    server = new_clickhouse()
    server.port = unused_port()
    stack = new_stack(clickhouse_url=server.address, load_attempts=6).make_topic()
    sent = stack.send_numbers(range(10))
    done = threading.Event()

    def start_when_missed() -> None:
        while not done.wait(0.05):
            runs = instance.get_runs(limit=1)
            kinds = {dg.DagsterEventType.STEP_UP_FOR_RETRY}
            if runs and instance.all_logs(runs[0].run_id, of_type=kinds):
                server.start()
                return

    starter = threading.Thread(target=start_when_missed)
    starter.start()
    try:
        result = _run(stack, instance)
    finally:
        done.set()
        starter.join()
    assert result.success
    retried = {event.step_key for event in result.all_events if event.is_step_up_for_retry}
    assert retried == {"events"}
    [(_, loaded)] = _told(instance, "events")
    assert loaded["rows"] == 10
    _assert_whole(stack, sent)


def test_clickhouse_away_for_long_keeps_nobody_from_staging(
    new_stack: Callable[..., Stack],
    instance: dg.DagsterInstance,
    new_clickhouse: Callable[[], ClickHouseServer],
) -> None:
    """Runs are green and their checks red; they go on staging, and are not started for nothing."""
    server = new_clickhouse()
    server.port = unused_port()
    stack = new_stack(clickhouse_url=server.address, load_attempts=1).make_topic()

    def next_try(at: int) -> None:
        with stack.ledger.begin() as connection:
            connection.execute(backoffs.update().values(next_try_at=at))

    lookout = Lookout(stack.settings)
    for staged in (1, 2):
        stack.send_numbers(range(10 * staged, 10 * staged + 10))
        assert isinstance(decide(instance, lookout), dg.RunRequest)
        result = _run(stack, instance)
        assert result.success
        assert set(_checks(result).values()) == {False}
        assert [batch.state for batch in stack.batches()] == [State.STAGED] * staged
    next_try(now_us() + 3_600_000_000)
    skipped = decide(instance, lookout)
    assert isinstance(skipped, dg.SkipReason)
    assert "the table events takes nothing since" in (skipped.skip_message or "")
    assert "next try at" in (skipped.skip_message or "")
    server.start()
    next_try(0)
    assert isinstance(decide(instance, lookout), dg.RunRequest)
    assert set(_checks(_run(stack, instance)).values()) == {True}
    assert [batch.state for batch in stack.batches()] == [State.COMMITTED] * 2


def test_kafka_away_keeps_nobody_from_loading(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is started for what is staged, is green, and its check of the lanes is red."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    stage_batches(stack.worker())
    monkeypatch.setattr(kafka_topic, "_METADATA_TIMEOUT_S", 1.0)
    monkeypatch.setattr(commit, "_WAIT_MS", 1_000)
    values = stack.settings.model_dump() | {"kafka_bootstrap_servers": "127.0.0.1:1"}
    away = Stack(Settings(**values))
    lookout = Lookout(away.settings)
    assert isinstance(decide(instance, lookout), dg.RunRequest)
    result = _run(away, instance)
    assert result.success
    assert [name for name, passed in _checks(result).items() if not passed] == [("events", "lanes")]
    _assert_whole(stack, sent)
    skipped = decide(instance, lookout)
    assert isinstance(skipped, dg.SkipReason)
    assert "Kafka did not answer" in (skipped.skip_message or "")
    away.ledger.dispose()


def test_kafka_that_refuses_us_fails_the_run_at_its_end(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """What is staged is loaded and proved first; then the run says what a person has to mend."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    stage_batches(stack.worker())
    lost = {"security.protocol": "ssl", "ssl.ca.location": "/nowhere/ca.pem"}
    refused = Stack(Settings(**stack.settings.model_dump() | {"kafka_options": lost}))
    assert isinstance(decide(instance, Lookout(refused.settings)), dg.RunRequest)
    result = _run(refused, instance)
    _assert_whole(stack, sent)
    assert [name for name, passed in _checks(result).items() if not passed] == [("events", "lanes")]
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_key == "audit"
    told = failed.step_failure_data.user_failure_data
    assert told is not None
    assert "ssl.ca.location failed" in (told.description or "")
    refused.ledger.dispose()


def test_what_waits_by_itself_turns_the_checks_red(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """A batch that fails alone, and the lack of room that it causes, are found by the checks.

    No run is started for what it cannot do; with the batch loaded all is well again.
    """
    stack = new_stack(staged_max_bytes=1).make_topic()
    sent = stack.send_numbers(range(10))
    [batch] = stage_batches(stack.worker())
    with stack.worker().lease() as lease:
        error = ClickHouseAway("Code: 241. too much for it", 241)
        hour = 3_600_000_000
        note_failure(
            stack.ledger, lease, batch_name(batch.batch_id, LOAD), error, lambda failures: hour
        )
    sent += stack.send_numbers(range(10, 20))
    assert stack.plan() is not None
    sent += stack.send_numbers(range(20, 30))
    lookout = Lookout(stack.settings)
    skipped = decide(instance, lookout)
    assert isinstance(skipped, dg.SkipReason)
    assert "wait to be loaded, TIDEMARK_STAGED_MAX_BYTES is 1" in (skipped.skip_message or "")

    result = _run(stack, instance)
    assert result.success
    told = {
        (each.asset_key.to_user_string(), each.check_name): str(each.description)
        for each in result.get_asset_check_evaluations()
        if not each.passed
    }
    assert told.keys() == {("events", "balance"), ("events", "lanes")}
    assert f"batch {batch.batch_id} failing: fails at load since" in told["events", "balance"]
    assert "Code: 241. too much for it" in told["events", "balance"]
    assert "docs/batch-failed.md" in told["events", "balance"]
    assert "room: no more is planned" in told["events", "lanes"]
    errors = [
        entry.user_message for entry in instance.all_logs(result.run_id) if entry.level >= ERROR
    ]
    assert any("none of what is staged is due" in message for message in errors)
    assert len(stack.batches()) == 2

    with stack.ledger.begin() as connection:
        connection.execute(backoffs.update().values(next_try_at=0))
    for _ in range(3):  # the budget lets one batch in at a time
        assert isinstance(decide(instance, lookout), dg.RunRequest)
        result = _run(stack, instance)
    assert set(_checks(result).values()) == {True}
    _assert_whole(stack, sent)

    low = Stack(stack.settings.model_copy(update={"lake_min_free_bytes": 1 << 60}))
    sent = stack.send_numbers(range(30, 40))
    result = _run(low, instance)
    assert result.success
    assert _checks(result)["events", "lanes"] is False


def test_what_needs_a_person_is_not_tried_again(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """A damaged file fails the run at once, in words that name the file."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    stage_batches(stack.worker())
    [batch] = stack.batches()
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    stack.lake_file(file.path).write_bytes(b"not what was staged")

    result = _run(stack, instance)
    assert not result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    failure = result.failure_data_for_node("events")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert file.path in (failure.user_failure_data.description or "")


def test_the_checks_notice_what_is_gone(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Rows that were taken out of ClickHouse behind our back fail the check, which names them."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    assert _run(stack, instance).success
    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    result = run(stack, instance, NOW.date(), "__ASSET_JOB", *ASSETS)
    checks = _checks(result)
    assert len(checks) == 4  # those of `queryable` are not of what a run makes
    red = {name for name, passed in checks.items() if not passed}
    assert red == {("events", "balance"), ("events", "older_batches")}
    [batch] = stack.batches()
    for failed in result.get_asset_check_evaluations():
        if not failed.passed:
            assert batch.batch_id in (failed.description or "")
            assert "staged 10 rows, ClickHouse has 0" in (failed.description or "")


def test_a_micro_batch_proves_older_batches_in_turn(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost of a batch that is new no more makes a check red, and it stays red."""
    monkeypatch.setattr("assets.checks._NEWEST_OF_DATE", 1)
    monkeypatch.setattr("orchestration.reconcile.ROTATION", 2)
    stack = new_stack(batch_max_records=5).make_topic()
    stack.send_numbers(range(20))
    assert all(_checks(_run(stack, instance)).values())
    first, *_ = stack.batches()
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{first.batch_id}' "
        "SETTINGS mutations_sync = 2"
    )
    seen = [_checks(_run(stack, instance)) for _ in range(4)]
    assert [checks["events", "balance"] for checks in seen] == [True] * 4
    # The second run proves the two that had no turn yet; from the third on it is known.
    assert [checks["events", "older_batches"] for checks in seen] == [True, False, False, False]


@pytest.mark.parametrize("failpoint", ["after-register", "after-insert", "after-loaded"])
def test_a_killed_run_is_carried_on_by_the_next(
    new_stack: Callable[..., Stack], tmp_path: Path, failpoint: str
) -> None:
    """kill -9 anywhere: the next run finishes the batch, nothing is lost or doubled or untold."""
    stack = new_stack().make_topic(2)
    sent = stack.send_numbers(range(50), 2)
    home = tmp_path / "dagster"
    home.mkdir()
    environment = _environment(stack, home)
    assert _execute(environment | {VARIABLE: failpoint}) == -signal.SIGKILL
    sent += stack.send_numbers(range(50, 60), 2)
    assert _execute(environment) == 0
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        batches = stack.batches()
        assert len(batches) == 2
        for asset in ASSETS:
            told = [entry["batch_id"] for _, entry in _told(instance, asset)]
            assert sorted(told) == sorted(batch.batch_id for batch in batches)
        killed, finished = instance.get_runs(ascending=True)
        assert finished.status is dg.DagsterRunStatus.SUCCESS
        assert killed.status is dg.DagsterRunStatus.STARTED  # nobody was left to say otherwise
    _assert_whole(stack, sent)


def test_terminate_ends_the_stagers_of_a_run(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    """Whatever they are at; their attempts say so, and the next run carries their batches.

    Here nobody cancels the run, so Dagster tries the step again: then others stop, and are killed.
    """
    stack = new_stack(batch_max_records=60).make_topic(2)
    sent = stack.send_numbers(range(100), 2)
    home = tmp_path / "dagster"
    home.mkdir()
    environment = _environment(stack, home) | {
        "TIDEMARK_STAGERS": "2",
        "TIDEMARK_BATCH_MAX_RECORDS": "60",
    }
    stopping = environment | {VARIABLE: "while-staging:stop"}
    run = subprocess.Popen(_EXECUTE, cwd=ROOT, env=stopping, stderr=subprocess.DEVNULL)
    try:
        until(lambda: [process_state(pid) for pid in _stagers(stack)] == ["T", "T"], "two stop")
        stopped = _stagers(stack)
        run.send_signal(signal.SIGTERM)
        await_ended(stopped)
        until(lambda: all(a.outcome for a in _tries(stack) if a.number == 1), "both are told")
    finally:
        run.kill()
        run.wait()
        for pid in alive(_stagers(stack)):
            os.kill(pid, signal.SIGKILL)
    ended = [attempt.error_class for attempt in _tries(stack) if attempt.number == 1]
    assert ended == ["DagsterExecutionInterruptedError", "StagingStopped"]
    assert _execute(environment) == 0
    _assert_whole(stack, sent)


def _tries(stack: Stack) -> list[Attempt]:
    return [a for batch in stack.batches() for a in attempts_of(stack.ledger, batch.batch_id)]


def _stagers(stack: Stack) -> list[int]:
    return [int(a.host.rpartition(":")[2]) for a in _tries(stack) if ":" in a.host]


def _environment(stack: Stack, home: Path) -> dict[str, str]:
    settings = stack.settings
    return {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "TIDEMARK_HOME": str(settings.home),
        "TIDEMARK_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TIDEMARK_TOPIC": settings.topic,
        "TIDEMARK_CLICKHOUSE_URL": settings.clickhouse_address,
        "TIDEMARK_CLICKHOUSE_DATABASE": settings.clickhouse_database,
    }


_EXECUTE = [
    *(sys.executable, "-m", "dagster", "job", "execute"),
    *("-m", "orchestration.definitions", "-j", "micro_batch"),
    *("--tags", f'{{"dagster/partition": "{TODAY}"}}'),
]


def _execute(environment: Mapping[str, str]) -> int:
    """The job in a process of its own; gives how that ended."""
    return subprocess.run(
        _EXECUTE, cwd=ROOT, env=environment, capture_output=True, check=False
    ).returncode


def test_a_troubled_topic_is_a_red_check_and_the_others_are_loaded(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Every topic is observed; one whose lane is not as planned fails the check, not the run."""
    stack = new_stack().make_topics()
    topics = stack.settings.topics
    for number, topic in enumerate(topics):
        stack.send(value_of(number), topic=topic)
    assert all(_checks(_run(stack, instance)).values())
    with stack.ledger.begin() as connection:
        truncated = lanes.update().where(lanes.c.topic == topics[2])
        connection.execute(truncated.values(planned_end=9))
    for number, topic in enumerate(topics[:2], 10):
        stack.send(value_of(number), topic=topic)
    result = _run(stack, instance)
    assert result.success
    assert _checks(result) == {
        ("events", "balance"): True,
        ("events", "lanes"): False,
        ("events", "older_batches"): True,
        ("dead_letters", "balance"): True,
    }
    for topic, places in zip(topics, ([0, 1], [0, 1], [0]), strict=True):
        assert sorted(stack.account_of(topic).events) == [(0, at) for at in places]
        observed = instance.fetch_observations(dg.AssetKey(["kafka", topic]), limit=10).records
        assert len(observed) == 2
    [trouble] = [
        entry.value
        for record in observed
        if record.asset_observation is not None
        for name, entry in record.asset_observation.metadata.items()
        if name == "trouble"
    ]
    assert "is planned up to 9" in trouble
