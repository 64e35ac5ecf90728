"""Checks: how much is rejected, the tables' schema, how complete and how fresh it all is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pyarrow.parquet as pq
import pytest

from assets import duplicates_check
from assets.pipeline import topic as kafka_topic
from assets.pipeline.batch import Kind, State
from assets.pipeline.redrive import Wanted, redrive
from assets.pipeline.waiting import release_batch
from orchestration.definitions import definitions
from orchestration.ledger.projects import create_project
from orchestration.settings import Settings
from tests.conftest import unused_port
from tests.records import Sent, delete_before, uuid_of, value_of
from tests.stack import ClickHouseServer, Stack

NewStack = Callable[..., Stack]

NOW = datetime.now(UTC)
CREATE_TIME = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}


class Checked:
    """What one check said, in the last of its runs."""

    def __init__(self, evaluation: dg.AssetCheckEvaluation) -> None:
        self.passed = evaluation.passed
        self.severity = evaluation.severity
        self.told = str(evaluation.description)
        self.metadata = {
            name: [record.data for record in entry.records]
            if isinstance(entry, dg.TableMetadataValue)
            else entry.value
            for name, entry in evaluation.metadata.items()
        }


def run(stack: Stack, instance: dg.DagsterInstance, day: datetime = NOW) -> dict[str, Checked]:
    """A micro-batch, and the checks after it; gives what these said, by their names."""
    made = definitions(stack.settings)
    batch = made.resolve_job_def("micro_batch")
    batch.execute_in_process(
        instance=instance, partition_key=day.date().isoformat(), raise_on_error=False
    )
    result = made.resolve_job_def("checks").execute_in_process(instance=instance)
    said = {each.check_name: Checked(each) for each in result.get_asset_check_evaluations()}
    assert said.keys() == {"schema", "duplicates", "completeness", "freshness", "rejects_share"}
    return said


def test_a_uuid_that_stands_twice(
    new_stack: NewStack, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Green when each stands once, however many parts; red, with both places, when one does not."""
    stack = new_stack().make_topic()
    stack.send_numbers([*range(9), 4])  # the client's own is found before it is staged
    said = run(stack, instance)["duplicates"]
    assert (said.passed, said.metadata["rows"]) == (True, 9)
    monkeypatch.setattr(duplicates_check, "ROWS_A_RUN", 4)
    assert "one in 3 of the uuids" in run(stack, instance)["duplicates"].told
    monkeypatch.undo()

    stack.client.command(
        f"INSERT INTO {stack.database}.events "
        f"SELECT * REPLACE (1000 AS _offset, 'hand' AS _batch_id) "
        f"FROM {stack.database}.events WHERE uuid = '{uuid_of(3)}'"
    )
    said = run(stack, instance)["duplicates"]
    assert not said.passed
    assert f"tidemark explain {uuid_of(3)}" in said.told
    [twice] = said.metadata["twice"]
    places = {f"{stack.settings.topic}/0:{offset}" for offset in (3, 1000)}
    assert (twice["uuid"], {twice["one"], twice["other"]}) == (uuid_of(3), places)


def test_the_share_of_rejects(new_stack: NewStack, instance: dg.DagsterInstance) -> None:
    """It warns of a date and of a run, with the reasons, until it is less."""
    stack = new_stack(warn_rejects_records=2, warn_rejects_percent=10).make_topic()
    stack.send(*map(value_of, range(7)), b"no json", b"nor this", b"\xff")
    share = run(stack, instance)["rejects_share"]
    assert (share.passed, share.severity) == (False, dg.AssetCheckSeverity.WARN)
    text = "3 of 10 records (30.0%) are dead letters (2 not_json, 1 not_utf8)"
    assert f"of {NOW.date()}: {text}; of the newest run: {text}. TIDEMARK_WARN_" in share.told
    assert "tidemark redrive" in share.told
    assert (share.metadata["rejected_percent"], share.metadata["records_of_run"]) == (30.0, 10)
    assert [(row["reason"], row["records"]) for row in share.metadata["reasons"]] == [
        ("not_json", 2),
        ("not_utf8", 1),
    ]
    assert all(row["meaning"] for row in share.metadata["reasons"])

    # This run is fine, its date is not yet; one more, and both are.
    stack.send(*map(value_of, range(10, 20)))
    share = run(stack, instance)["rejects_share"]
    assert (share.passed, share.metadata["rejected_percent_of_run"]) == (False, 0.0)
    assert "of the newest run" not in share.told
    stack.send(*map(value_of, range(20, 40)))
    share = run(stack, instance)["rejects_share"]
    assert (share.passed, share.metadata["rejected_percent"]) == (True, 7.5)


def test_redriven_letters_count_no_more(new_stack: NewStack, instance: dg.DagsterInstance) -> None:
    """What was mended since is told, and is no reason to warn."""
    stack = new_stack(warn_rejects_records=0, warn_rejects_percent=10).make_topic()
    key = f"{create_project(stack.ledger, 'shop').token}:x".encode()
    stack.send(*(Sent(value_of(n, project_id=0), key=key) for n in range(4)))
    assert not run(stack, instance)["rejects_share"].passed
    redrive(stack.worker(), Wanted())
    share = run(stack, instance)["rejects_share"]
    assert (share.passed, share.metadata["redriven"]) == (True, 4)
    assert "0 of 4 records (0.0%) are dead letters and 4 more are redriven" in share.told


def test_completeness_stands_still_before_what_waits_for_a_person(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """A held batch holds the watermark; released and loaded, all is queryable. Others are fresh."""
    stack = new_stack(hold_over_records=0, hold_over_percent=50, alarm_oldest_seconds=60)
    stack.make_topic(1, **CREATE_TIME)
    old = int((NOW - timedelta(hours=2)).timestamp() * 1000)
    stack.send(*(Sent(b"no json", 0, old) for _ in range(3)))
    day = NOW - timedelta(hours=2)
    checks = run(stack, instance, day)
    [batch] = stack.batches()
    assert batch.state is State.HELD
    complete = checks["completeness"]
    assert not complete.passed
    assert f"is queryable or accounted for; held by partition 0 of {stack.settings.topic}" in (
        complete.told
    )
    assert f"It stands still: batch {batch.batch_id} of {day.date()} is held" in complete.told
    assert f"tidemark release {batch.batch_id}" in complete.told
    assert complete.metadata["waiting_for_a_person"] == 1
    assert complete.metadata["complete_age_seconds"] == pytest.approx(7_200, abs=3_600)
    # That it waits is its design: freshness is about what is to be loaded.
    assert checks["freshness"].passed
    assert "nothing that is to be loaded waits" in checks["freshness"].told

    release_batch(stack.worker(), batch.batch_id)
    checks = run(stack, instance, day)
    assert checks["completeness"].passed
    assert checks["completeness"].metadata["complete_age_seconds"] < 600
    [row] = checks["completeness"].metadata["topics"]
    assert (row["topic"], row["not_loaded"]) == (stack.settings.topic, 0)


def test_completeness_is_red_for_what_kafka_has_forgotten(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """A gap is named by its batch."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(5))
    assert stack.plan() is not None
    delete_before(stack.kafka, stack.settings.topic, {0: 3})
    complete = run(stack, instance)["completeness"]
    assert not complete.passed
    [batch] = stack.batches()
    assert f"batch {batch.batch_id} of {NOW.date()} is gap and waits for a person" in complete.told


def test_what_moves_by_itself_is_green_until_it_is_late(
    new_stack: NewStack,
    instance: dg.DagsterInstance,
    new_clickhouse: Callable[[], ClickHouseServer],
) -> None:
    """ClickHouse is away: completeness waits, freshness is red when it has taken too long."""
    server = new_clickhouse()
    server.port = unused_port()
    stack = new_stack(
        clickhouse_url=server.address,
        load_attempts=1,
        alarm_oldest_seconds=10_800,
    ).make_topic(1, **CREATE_TIME)
    historical = stack.settings.historical_topic
    stack._make(historical, 1, CREATE_TIME)
    day = NOW - timedelta(hours=2)
    stack.send(Sent(value_of(1), 0, int(day.timestamp() * 1000)))
    checks = run(stack, instance, day)
    assert checks["completeness"].passed
    assert checks["completeness"].told.endswith("which moves on by itself")
    assert checks["freshness"].passed
    assert "the oldest record has waited 2 h, it may for 3 h" in checks["freshness"].told
    assert checks["rejects_share"].passed
    assert not checks["schema"].passed
    assert "not proved: the table events takes nothing since" in checks["schema"].told

    long_ago = NOW - timedelta(hours=4)
    stack.send(Sent(value_of(2), 0, int(long_ago.timestamp() * 1000)), topic=historical)
    fresh = run(stack, instance, day)["freshness"]
    assert fresh.passed
    [main, beside] = fresh.metadata["oldest"]
    assert (beside["topic"], beside["waited"], beside["may_wait"]) == (historical, "4 h", "any")

    late = Stack(stack.settings.model_copy(update={"alarm_oldest_seconds": 60.0}))
    fresh = run(late, instance, day)["freshness"]
    assert not fresh.passed
    assert f"of topic {stack.settings.topic} that is to be loaded has waited 2 h" in fresh.told
    assert "`tidemark status` says what it waits for" in fresh.told
    assert main["may_wait"] == "3 h"
    late.ledger.dispose()
    server.start()  # what the test made is dropped there


def test_a_drifted_table_is_named_column_by_column(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """Each drift has the command that mends it; what somebody has added is told and not judged."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(3))
    schema = run(stack, instance)["schema"]
    assert (schema.passed, schema.metadata["drifts"]) == (True, 0)
    assert (schema.metadata["tables"], schema.metadata["files"]) == (5, 1)
    events = f"{stack.database}.events"
    for drift in (
        "DROP COLUMN url_path",
        "MODIFY COLUMN client_timestamp LowCardinality(String)",
        "MODIFY COLUMN _inserted_at DateTime64(3, 'UTC') DEFAULT now64(6)",
        "DROP PROJECTION by_batch",
        "DROP INDEX by_uuid",
        "MODIFY SETTING non_replicated_deduplication_window = 5",
        "ADD COLUMN team String DEFAULT 'ours'",
    ):
        stack.client.command(f"ALTER TABLE {events} {drift} SETTINGS mutations_sync = 2")
    schema = run(stack, instance)["schema"]
    assert not schema.passed
    drifts = [line.removeprefix("- ") for line in schema.metadata["drifted"].splitlines()]
    assert [drift.split(": ")[0] for drift in drifts] == [
        "events.client_timestamp is LowCardinality(String), this version writes String",
        "events.url_path is missing",
        "events._inserted_at has the default now64(6), this version's is now64(3)",
        "events remembers 5 inserts, this version's 10,000",
        "the projection by_batch of events is missing",
        "the index by_uuid of events is missing",
    ]
    assert schema.metadata["besides"] == "events.team"
    for drift in drifts:
        stack.client.command(f"{drift.split(': ', 1)[1]} SETTINGS mutations_sync = 2")
    schema = run(stack, instance)["schema"]
    assert (schema.passed, schema.told) == (
        True,
        f"5 tables of {stack.database} and 1 staged files are as this version makes them",
    )


def test_keys_that_are_others_need_a_new_table(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """No command mends them, and it is said so, though such a table cannot be proved."""
    stack = new_stack().make_topic()
    stack.send(b"no json")
    run(stack, instance)
    letters = f"{stack.database}.dead_letters"
    stack.client.command(f"DROP TABLE {letters} SYNC")
    stack.client.command(
        f"CREATE TABLE {letters} (reason String, _offset Int64) ENGINE = MergeTree "
        "PARTITION BY reason ORDER BY _offset"
    )
    schema = run(stack, instance)["schema"]
    assert not schema.passed
    drifted = schema.metadata["drifted"]
    assert "dead_letters is partitioned by reason, this version's by arrival_date" in drifted
    assert "dead_letters is ordered by _offset, this version's by reason, _topic" in drifted
    assert "dead_letters.value_sha256 is missing: ALTER TABLE" in drifted


def test_a_staged_file_of_another_form_is_named(
    new_stack: NewStack, instance: dg.DagsterInstance
) -> None:
    """A column that it lacks, has of another type, or has besides."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(3))
    run(stack, instance)
    [batch] = stack.batches()
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    path = stack.lake_file(file.path)
    rows = pq.read_table(path)
    flags = rows.column("flags").cast("string")
    rows = rows.drop_columns(["url_path", "flags"]).append_column("flags", flags)
    pq.write_table(rows.append_column("team", flags), path)
    schema = run(stack, instance)["schema"]
    assert not schema.passed
    told = [line.split(",")[-1].strip() for line in schema.metadata["drifted"].splitlines()]
    of_file = schema.metadata["drifted"]
    assert f"of batch {batch.batch_id}" in of_file
    assert "has flags as string" in of_file
    assert "has no column url_path" in of_file
    assert "has the column team" in of_file
    assert len(told) == 3
    path.unlink()
    assert "cannot be read" in run(stack, instance)["schema"].told


def test_what_cannot_be_asked_is_red_and_fails_no_run(
    new_stack: NewStack, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither Kafka nor ClickHouse answers: each says so, and what the ledger knows is judged."""
    stack = new_stack(hold_over_records=0).make_topic()
    stack.send(b"no json", b"nor this")
    stack.run()
    monkeypatch.setattr(kafka_topic, "_METADATA_TIMEOUT_S", 1.0)
    away = {
        "kafka_bootstrap_servers": "127.0.0.1:1",
        "clickhouse_url": f"http://127.0.0.1:{unused_port()}",
    }
    made = definitions(Settings(**(stack.settings.model_dump() | away)))
    result = made.resolve_job_def("checks").execute_in_process(instance=instance)
    said = {each.check_name: Checked(each) for each in result.get_asset_check_evaluations()}
    for name in ("completeness", "freshness"):
        assert not said[name].passed
        assert "cannot be told now: Kafka" in said[name].told
    assert not said["schema"].passed
    assert "cannot be told now: ClickHouse" in said["schema"].told
    assert "2 of 2 records (100.0%) are dead letters" in said["rejects_share"].told
