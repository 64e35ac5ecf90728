"""`tidemark status` as a person and a script read it, and the view that tells SQL the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from assets.pipeline import topic as kafka_topic
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.errors import KafkaAway, ProofFailed, SeenMeanwhile, StagedFileDamaged
from assets.pipeline.loading import load_batches
from assets.pipeline.staging import stage_batches
from assets.pipeline.tell_standing import tell_standing
from assets.pipeline.waiting import retry_batch
from assets.pipeline.worker import Worker
from orchestration.cli import tidemark
from orchestration.cli.text import bytes_text, labelled
from orchestration.ledger.attempts import attempt
from orchestration.times import span_text
from tests.records import delete_before, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]


def shown(stack: Stack, *arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(tidemark, arguments, env=stack.settings.environment())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.stdout


def document(stack: Stack) -> dict[str, Any]:
    """What `status --json` prints."""
    found: dict[str, Any] = json.loads(shown(stack, "status", "--json"))
    return found


def test_a_backlog_is_told_with_its_age_and_its_end(new_stack: NewStack) -> None:
    """Records, bytes, the oldest record, and how long Kafka keeps it."""
    stack = new_stack()
    stack._make(
        stack.settings.topic,
        2,
        {"message.timestamp.type": "LogAppendTime", "retention.ms": "86400000"},
    )
    stack.send_numbers(range(10), 2)
    stack.run()
    stack.send_numbers(range(10, 14), 2)
    found = document(stack)
    [main, *_] = found["topics"]
    assert (found["not_loaded"], main["not_loaded"], main["lag"]) == (4, 4, 4)
    assert main["not_loaded_bytes"] > 400
    assert main["retention_ms"] == 86_400_000
    assert 0 < main["unread_expires_in"] <= 86_400
    assert main["oldest_not_loaded_age"] <= main["earliest_age"]
    assert found["complete"]["before"] == main["oldest_not_loaded"]
    assert datetime.fromisoformat(found["complete"]["before"]).utcoffset() is not None
    assert found["complete"]["age"] == main["oldest_not_loaded_age"]
    assert [lane["loaded_end"] for lane in main["partitions"]] == [5, 5]
    told = shown(stack, "status")
    assert "4 records not loaded, about" in told
    assert "UTC" in told.split("complete  before ")[1]
    assert "the oldest unread one may go in 24 h" in told
    assert max(map(len, told.splitlines())) <= 100


def test_failures_and_what_does_not_hold_are_told(new_stack: NewStack) -> None:
    """Error class and text of the last attempts, and batches that an audit found wanting."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(5))
    [batch] = stage_batches(stack.worker())
    assert batch.staged is not None
    path = stack.lake_file(batch.staged.files[0].path)
    path.write_bytes(b"cut")
    with pytest.raises(StagedFileDamaged):
        load_batches(stack.worker())
    [failure] = document(stack)["last_failures"]
    assert {name: failure[name] for name in ("batch_id", "stage", "attempt", "error_class")} == {
        "batch_id": batch.batch_id,
        "stage": "load",
        "attempt": 1,
        "error_class": "StagedFileDamaged",
    }
    assert "is not what was staged" in failure["error_text"]
    stack.run()
    never_proved = {"loaded": 1, "proved": 0, "oldest_proof": None, "failed": []}
    assert document(stack)["audits"] == never_proved
    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    shown(stack, "reconcile")
    found = document(stack)["audits"]
    assert (found["proved"], [audit["batch_id"] for audit in found["failed"]]) == (
        1,
        [batch.batch_id],
    )
    told = shown(stack, "status")
    assert "StagedFileDamaged: " in told
    assert "but 1 loaded batches do not hold" in told
    assert f"batch {batch.batch_id} does not hold: in {stack.database}.events" in told
    assert max(map(len, told.splitlines())) <= 100 + len(str(path))  # a path is not cut
    shown(stack, "reconcile", "--repair")
    assert document(stack)["audits"]["failed"] == []


def test_records_that_are_gone_are_told(new_stack: NewStack) -> None:
    """What retention took before it was read needs a person, even before a run has met it."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(5))
    stack.run()
    stack.send_numbers(range(10, 15))
    delete_before(stack.kafka, stack.settings.topic, {0: 8})
    assert document(stack)["topics"][0]["lost"] == 3
    told = shown(stack, "status")
    assert f"ATTENTION {stack.settings.topic}: 3 records were gone before reading" in told
    assert "complete  at least before" in told


def view(stack: Stack, columns: str) -> list[Sequence[Any]]:
    """What the view says of each topic."""
    return stack.rows(f"SELECT {columns} FROM {{database}}.pipeline_status ORDER BY topic")


def test_the_view_tells_sql_how_each_topic_stands(new_stack: NewStack) -> None:
    """Batches by state, records by verdict, the last failure, lag, retention, completeness."""
    stack = new_stack(batch_max_records=4)
    main, historical, overflow = stack.settings.topics
    day = {"message.timestamp.type": "LogAppendTime", "retention.ms": "86400000"}
    for topic in (main, historical):
        stack._make(topic, 1, day)
    stack.send(*map(value_of, range(8)), b"no event", value_of(0))
    stack.send(value_of(20), topic=historical)
    torn = stage_batches(stack.worker())[0]
    with suppress(SeenMeanwhile), attempt(stack.ledger, torn.batch_id, "stage", "run"):
        raise SeenMeanwhile("staged again for what others have registered, which is no failure")
    make_tables(stack.client, stack.database)
    stack.client.command(
        f"INSERT INTO {stack.database}.events (_batch_id, _offset) VALUES ('{torn.batch_id}', 99)"
    )
    with pytest.raises(ProofFailed):
        load_batches(stack.worker())
    stack.run()
    stack.send(value_of(30))
    tell_standing(stack.worker())
    columns = "topic, batches, batches_by_state, batches_waiting_for_a_person, offsets"
    columns += ", rows_ok, rows_rejected, rows_duplicate, failed_attempts, last_error_class"
    states = {"committed": 2, "suspect": 1}
    assert view(stack, columns) == sorted(
        [
            (main, 3, states, 1, 10, 8, 1, 1, 1, "ProofFailed"),
            (historical, 1, {"committed": 1}, 0, 1, 1, 0, 0, 0, ""),
            (overflow, 0, {}, 0, 0, 0, 0, 0, 0, ""),
        ]
    )
    stack.client.command(  # a redrive that was given up: nobody waits for it
        f"INSERT INTO {stack.database}.batches (batch_id, topic, arrival_date, state) "
        f"VALUES ('redrive', '{historical}', '2020-02-02', 'superseded')"
    )
    stack.client.command(  # and one of which a loss was accepted
        f"INSERT INTO {stack.database}.batches (batch_id, topic, arrival_date, state, ranges, lost)"
        f" VALUES ('lost', '{historical}', '2020-02-02', 'committed', [(0, 1, 4)], 3)"
    )
    verdicts = ("ok", "rejected", "duplicate", "tombstone", "absent", "lost")
    accounted = " + ".join(f"rows_{verdict}" for verdict in verdicts)
    assert {row[0] for row in view(stack, f"offsets - ({accounted})")} == {0}
    told = {row[0]: row[1:] for row in view(stack, "topic, oldest_date_not_loaded, last_failed_at")}
    assert [told[main][0], told[historical][0]] == [torn.arrival_date, None]
    assert [told[main][1] is None, told[historical][1]] == [False, None]

    times = "oldest_not_loaded_at, unread_expires_at, earliest_at"
    columns = "topic, not_planned, not_loaded, not_loaded_bytes > 500, lost"
    columns += f", {times}, complete_before, complete_held_by, all_complete_before, seen_at"
    rows = {row[0]: row[1:] for row in view(stack, columns)}
    *counts, oldest, expires, earliest, complete, held_by, all_complete, seen = rows[main]
    assert counts == [1, 5, True, 0]
    assert oldest == earliest == complete == all_complete < seen
    assert oldest + timedelta(days=1) < expires < seen + timedelta(days=1)
    assert held_by == f"partition 0 of {main} at offset 0"
    spans = "topic, oldest_not_loaded_seconds, unread_expires_seconds"
    waited, left = {row[0]: row[1:] for row in view(stack, spans)}[main]
    assert abs(waited - (seen - oldest).total_seconds()) <= 1
    assert abs(left - (expires - seen).total_seconds()) <= 1
    *counts, oldest, expires, earliest, complete, held_by, all_complete, seen = rows[historical]
    assert (counts, oldest, expires, complete, held_by) == ([0, 0, False, 0], None, None, seen, "")

    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    retry_batch(stack.worker(), torn.batch_id)
    shown(stack, "batch")  # which tells it at its end
    for _, oldest, complete, seen in view(
        stack, "topic, oldest_not_loaded_at, all_complete_before, seen_at"
    ):
        assert (oldest, complete) == (None, seen)


def test_without_kafka_nothing_is_said_to_be_complete(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the ledger knows is told all the same; the view keeps what was seen last."""
    monkeypatch.setattr(kafka_topic, "_METADATA_TIMEOUT_S", 1.0)
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    found = document(stack)
    assert (found["complete"]["before"], found["topics"]) == (None, [])
    assert "did not answer" in found["complete"]["held_by"]
    assert "complete  cannot be said: Kafka did not answer" in shown(stack, "status")
    said: list[str] = []
    tell_standing(Worker(stack.settings, stack.ledger, "run", said.append))
    assert "is not noted in ClickHouse" in said[0]


def test_kafka_is_not_waited_for_as_a_worker_waits(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks: an answer that a worker would wait for is not waited for."""
    waited: list[float] = []

    def away(_: AdminClient, *__: Any, request_timeout: float, **___: Any) -> Any:
        waited.append(request_timeout)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(AdminClient, "describe_topics", away)
    stack = new_stack()
    assert "cannot be said: Kafka did not answer" in shown(stack, "status")
    with pytest.raises(KafkaAway):
        stack.worker().topics[stack.settings.topic].identity()
    look, work = waited
    assert look < 3 < work


@pytest.mark.parametrize(
    ("microseconds", "told"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (119_000_000, "119 s"),
        (120_000_000, "2 min"),
        (7_200_000_000, "2 h"),
        (172_800_000_000, "2.0 days"),
    ],
)
def test_spans_are_told_in_a_unit_that_suits(microseconds: int, told: str) -> None:
    """Seconds, minutes, hours, days."""
    assert span_text(microseconds) == told


@pytest.mark.parametrize(
    ("size", "told"), [(0, "0 bytes"), (1_000, "1 kB"), (2_500_000, "2 MB"), (10**13, "10.0 TB")]
)
def test_sizes_are_told_in_a_unit_that_suits(size: int, told: str) -> None:
    """Bytes to terabytes."""
    assert bytes_text(size) == told


def test_long_lines_are_folded_and_words_kept() -> None:
    """A line fits the terminal; an id that somebody copies is whole."""
    lines = labelled("label", " ".join(["word"] * 40 + ["x" * 95]))
    assert [len(line) <= 100 for line in lines[:-1]] == [True] * (len(lines) - 1)
    assert lines[0].startswith("label     word")
    assert lines[-1].strip() == "x" * 95
