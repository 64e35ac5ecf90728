"""A micro-batch from Kafka to ClickHouse: every record is found once, and can be traced."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable

import duckdb
import pytest
from confluent_kafka import Consumer, TopicPartition

from assets.pipeline.batch import Balance, Kind, State
from assets.pipeline.columns import DEAD_LETTER_BYTES
from assets.pipeline.commit import group_id
from orchestration.ledger.attempts import attempts_of
from tests.records import Sent, read_value, uuid_of, value_of, value_with
from tests.stack import Stack

NewStack = Callable[..., Stack]

BROKEN = b'{"v":1,"uuid":"cut off'


def test_every_offset_comes_out_once(new_stack: NewStack) -> None:
    """Sound, broken, repeated and empty records of three partitions are each found once."""
    stack = new_stack(batch_max_records=700).make_topic(3)
    sent = stack.send_numbers(range(2_000), partitions=3)
    repeated = stack.send(*(Sent(value_of(number), 1) for number in range(0, 2_000, 40)))
    broken = stack.send(*(Sent(BROKEN, number % 3) for number in range(20)), b"")
    tombstones = stack.send(*(Sent(None, number % 3) for number in range(10)))

    batches = stack.run()
    account = stack.account()

    assert account.places == Counter([*sent, *repeated, *broken])
    assert Counter(account.dead_letters) == Counter(broken)
    assert len(account.duplicates) == len(repeated)
    assert len(batches) >= 3
    assert {batch.state for batch in batches} == {State.COMMITTED}
    total = sum((batch.staged.balance for batch in batches if batch.staged), Balance())
    assert total == Balance(ok=2_000, rejected=21, duplicate=50, tombstone=len(tombstones))
    for batch in batches:
        assert batch.staged is not None
        assert batch.staged.balance.offsets == batch.offsets <= 700


def test_a_row_holds_the_event_and_its_origin(new_stack: NewStack) -> None:
    """A row has the event as it was sent, and says where it stood and who carried it."""
    stack = new_stack().make_topic()
    properties = '{"$lib":"web","$current_url":"https://Example.com/a?utm_source=x","ü":"\\u0000"}'
    stack.send(value_of(1, properties.encode(), project_id=7, sent_at=5, offset_ms=-3, event="é"))
    batch = stack.run("run-7")[0]
    row = stack.client.query(
        f"SELECT *, toInt64(toUnixTimestamp64Micro(timestamp)) AS us FROM {stack.database}.events"
    ).first_item
    assert row is not None
    expected = {
        "project_id": 7,
        "event": "é",
        "distinct_id": "person-1",
        "properties": properties,
        "lib": "web",
        "url_host": "example.com",
        "utm_source": "x",
        "offset_ms": -3,
        "us": read_value(value_of(1))["timestamp"],
        "arrival_date": batch.arrival_date,
        "_topic": batch.topic,
        "_partition": 0,
        "_offset": 0,
        "_batch_id": batch.batch_id,
        "_generation": 0,
        "_run_id": "run-7",
    }
    assert {name: row[name] for name in expected} == expected
    assert str(row["uuid"]) == uuid_of(1)


def test_a_second_run_without_new_records_does_nothing(new_stack: NewStack) -> None:
    """What is committed is not planned, staged or loaded again."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    first = stack.run()
    assert stack.run("again") == first
    assert stack.account().places == Counter(sent)


def test_a_run_on_an_empty_topic_plans_nothing(new_stack: NewStack) -> None:
    """An empty topic gives no batch, and is no error."""
    assert new_stack().make_topic(2).run() == []


@pytest.mark.parametrize("records", [[None], [BROKEN], [b""], [None, BROKEN]])
def test_a_batch_without_events_is_committed(
    new_stack: NewStack, records: list[bytes | None]
) -> None:
    """A batch of tombstones or of rejected records alone goes through all the stages."""
    stack = new_stack().make_topic()
    stack.send(*records)
    (batch,) = stack.run()
    assert batch.state is State.COMMITTED
    assert batch.dead_letters_loaded_at is not None
    assert stack.account().events == []


def test_a_malformed_record_becomes_a_dead_letter(new_stack: NewStack) -> None:
    """Its bytes, key, headers, reason and place are kept, in the table and in the lake."""
    stack = new_stack().make_topic()
    headers: list[tuple[str, str | bytes | None]] = [("a", b"\xff"), ("a", b"2"), ("none", None)]
    bad = b'{"v":1,\xff\x00'
    stack.send(value_of(1), Sent(bad, key=b"\xfe", headers=headers), value_of(2))
    (batch,) = stack.run()
    assert batch.staged is not None
    assert batch.staged.balance == Balance(ok=2, rejected=1)

    (row,) = stack.client.query(
        f"SELECT * EXCEPT (key, value), hex(key) AS key, hex(value) AS value "
        f"FROM {stack.database}.dead_letters"
    ).named_results()
    assert row["reason"] == "not_utf8"
    assert row["stage"] == "validate"
    assert bytes.fromhex(row["value"]) == bad
    assert bytes.fromhex(row["key"]) == b"\xfe"
    assert row["value_length"] == len(bad)
    assert row["value_sha256"] == hashlib.sha256(bad).hexdigest()
    assert json.loads(row["headers"]) == [
        ["a", base64.b64encode(b"\xff").decode()],
        ["a", base64.b64encode(b"2").decode()],
        ["none", None],
    ]
    assert (row["_partition"], row["_offset"]) == (0, 1)
    assert (row["_topic_id"], row["_batch_id"]) == (batch.topic_id, batch.batch_id)

    file = batch.staged.file(Kind.DEAD_LETTERS)
    assert file is not None
    query = f"SELECT value FROM '{stack.lake_file(file.path)}'"
    assert duckdb.connect().execute(query).fetchall() == [(bad,)]


def test_a_long_dead_letter_keeps_its_beginning_and_its_hash(new_stack: NewStack) -> None:
    """Of a long value the beginning is kept, and the length and SHA-256 of all of it."""
    stack = new_stack().make_topic()
    bad = b"x" * (DEAD_LETTER_BYTES + 1)
    stack.send(bad)
    stack.run()
    assert stack.rows(
        "SELECT length(value), value_length, value_sha256 FROM {database}.dead_letters"
    ) == [(DEAD_LETTER_BYTES, len(bad), hashlib.sha256(bad).hexdigest())]


def test_records_without_key_or_headers_are_carried(new_stack: NewStack) -> None:
    """Neither a key nor headers are needed, be the record sound or not."""
    stack = new_stack().make_topic()
    stack.send(Sent(value_of(1), key=None, headers=()), Sent(b"x", key=None, headers=()))
    stack.run()
    assert stack.account().events == [(0, 0)]
    assert stack.rows("SELECT key, headers FROM {database}.dead_letters") == [(None, "[]")]


def test_the_edges_of_every_column_reach_the_table(new_stack: NewStack) -> None:
    """The first and last time and the largest numbers come out of ClickHouse as they went in."""
    stack = new_stack().make_topic()
    first, last, most = -2_208_988_800_000_000, 10_413_791_999_999_999, (1 << 32) - 1
    stack.send(
        value_with(1, timestamp=first, received_at=first, sent_at=first, offset_ms=-(1 << 63)),
        value_with(2, timestamp=last, received_at=last, sent_at=last, offset_ms=(1 << 63) - 1),
        value_with(3, project_id=most, flags=most, event="", distinct_id="", ip=None),
    )
    stack.run()
    micro = "toUnixTimestamp64Micro"
    assert stack.rows(
        f"SELECT {micro}(timestamp), {micro}(received_at), {micro}(sent_at), offset_ms "
        "FROM {database}.events WHERE project_id = 1 ORDER BY timestamp"
    ) == [(first, first, first, -(1 << 63)), (last, last, last, (1 << 63) - 1)]
    assert stack.rows(
        "SELECT project_id, flags, sent_at, ip FROM {database}.events WHERE project_id > 1"
    ) == [(most, most, None, "")]


def test_a_repeated_uuid_is_a_duplicate_at_once(new_stack: NewStack) -> None:
    """Within a batch and in the next one, the first record of a project's uuid is the row."""
    stack = new_stack().make_topic()
    stack.send(value_of(1), value_of(1), value_of(1, project_id=2))
    stack.run()
    stack.send(value_of(1), value_of(2), value_of(2), value_of(1, project_id=3))
    stack.run()
    account = stack.account()
    assert sorted(account.events) == [(0, 0), (0, 2), (0, 4), (0, 6)]
    assert sorted(account.duplicates) == [(0, 1), (0, 3), (0, 5)]


def test_the_group_shows_how_far_loading_has_come(new_stack: NewStack) -> None:
    """After a run the group's offsets are the ends of what is loaded, with the batch's name."""
    stack = new_stack().make_topic(2)
    stack.send_numbers(range(10), partitions=2)
    (batch,) = stack.run()
    consumer = Consumer(
        {"bootstrap.servers": stack.kafka, "group.id": group_id(stack.settings.topic)}
    )
    try:
        committed = consumer.committed(
            [TopicPartition(stack.settings.topic, partition) for partition in range(2)], 10
        )
    finally:
        consumer.close()
    assert [(at.partition, at.offset, at.metadata) for at in committed] == [
        (0, 5, batch.batch_id),
        (1, 5, batch.batch_id),
    ]


def test_the_mirror_tells_batches_and_attempts(new_stack: NewStack) -> None:
    """ClickHouse can be asked for a row's batch, its balance and its attempts."""
    stack = new_stack().make_topic()
    stack.send(value_of(1), BROKEN)
    (batch,) = stack.run("run-9")
    assert stack.rows(
        "SELECT state, run_id, ok, rejected, ranges, staged_file FROM {database}.batches FINAL"
    ) == [
        (
            "committed",
            "run-9",
            1,
            1,
            [{"partition": 0, "start": 0, "end": 2}],
            f"events/arrival_date={batch.arrival_date}/{batch.batch_id}.parquet",
        )
    ]
    mirrored = stack.rows(
        "SELECT stage, number, outcome FROM {database}.batch_attempts FINAL ORDER BY started_at"
    )
    assert mirrored == [
        (each.stage, each.number, each.outcome)
        for each in attempts_of(stack.ledger, batch.batch_id)
    ]
    assert [stage for stage, _, _ in mirrored] == ["stage", "load", "dead_letters"]
