"""Reading: exactly the planned records, and no silence about those that are gone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from assets.pipeline import read
from assets.pipeline.audit import unbalanced
from assets.pipeline.batch import Balance, Range, State
from assets.pipeline.errors import BatchError, Gap, TopicReplaced, TransientError
from assets.pipeline.read import Chunk, check_readable, read_ranges
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import accept_gap, retry_batch
from orchestration.ledger.gaps import all_gaps
from tests.conftest import unused_port
from tests.records import Sent, delete_before, value_of
from tests.stack import Place, Stack

NewStack = Callable[..., Stack]


def chunks(stack: Stack, *ranges: Range) -> list[Chunk]:
    """All the chunks of ranges."""
    return list(read_ranges(stack.settings.kafka_client, stack.settings.topic, ranges))


def places(found: list[Chunk]) -> list[Place]:
    """Where the records of chunks stand, in the order they came."""
    return [
        (partition, offset)
        for chunk in found
        for partition, offset in zip(
            chunk.records["partition"].to_pylist(), chunk.records["offset"].to_pylist(), strict=True
        )
    ]


def test_exactly_the_ranges_are_read(new_stack: NewStack) -> None:
    """Of each partition the range and nothing else comes, once and in order."""
    stack = new_stack().make_topic(3)
    stack.send_numbers(range(3_000), partitions=3)
    found = places(chunks(stack, Range(0, 100, 900), Range(1, 999, 1_000), Range(2, 5, 5)))
    assert [offset for partition, offset in found if partition == 0] == list(range(100, 900))
    assert [place for place in found if place[0] != 0] == [(1, 999)]


def test_a_record_is_read_as_it_is(new_stack: NewStack) -> None:
    """Value, key, headers and the broker's time come; no value and an empty one differ."""
    stack = new_stack().make_topic()
    headers: list[tuple[str, str | bytes | None]] = [("a", None), ("a", b"\xff")]
    stack.send(Sent(None, key=b"k", headers=headers), Sent(b"", key=None, headers=()))
    (chunk,) = chunks(stack, Range(0, 0, 2))
    assert chunk.records["value"].to_pylist() == [None, b""]
    assert chunk.records["key"].to_pylist() == [b"k", None]
    assert all(time > 1_600_000_000_000 for time in chunk.records["appended_at"].to_pylist())
    assert json.loads(chunk.headers(0)) == [["a", None], ["a", base64.b64encode(b"\xff").decode()]]
    assert chunk.headers(1) == "[]"


def test_a_gap_holds_the_batch_and_names_the_span(new_stack: NewStack) -> None:
    """Records that retention took are a gap with exact offsets; what came later is carried."""
    stack = new_stack().make_topic(2)
    stack.send_numbers(range(20), partitions=2)
    planned = stack.plan()
    assert planned is not None
    delete_before(stack.kafka, stack.settings.topic, {0: 4, 1: 10})
    with pytest.raises(Gap, match=r"0:\[0,4\), 1:\[0,10\) \(14 offsets"):
        stage_batches(stack.worker())
    (batch,) = stack.batches()
    assert batch.state is State.GAP
    assert "0:[0,4), 1:[0,10) (14 offsets" in batch.note

    later = stack.send_numbers(range(20, 24), partitions=2)
    assert [each.state for each in stack.run()] == [State.GAP, State.COMMITTED]
    assert stack.account().places == dict.fromkeys(later, 1)


def test_an_accepted_gap_counts_as_lost_and_what_is_left_is_loaded(new_stack: NewStack) -> None:
    """After a person has accepted the loss, the batch carries the rest and its balance closes."""
    stack = new_stack().make_topic(2)
    sent = stack.send_numbers(range(20), partitions=2)
    assert stack.plan() is not None
    delete_before(stack.kafka, stack.settings.topic, {0: 4, 1: 10})
    with pytest.raises(Gap):
        stage_batches(stack.worker())
    (gap,) = stack.batches()
    assert retry_batch(stack.worker(), gap.batch_id) is State.PLANNED
    with pytest.raises(Gap):
        stage_batches(stack.worker())
    retried, open_ = all_gaps(stack.ledger, stack.settings.topic)
    assert (retried.decision, open_.decision) == ("retried", None)
    assert (open_.lost, open_.records) == ("0:[0,4), 1:[0,10)", 14)
    with pytest.raises(BatchError, match=f"gap {retried.gap_id} was retried already"):
        accept_gap(stack.worker(), retried.gap_id, "")
    accepted = accept_gap(stack.worker(), open_.gap_id, "known outage")
    assert (accepted.decision, accepted.why) == ("accepted", "known outage")
    (batch,) = stack.run()
    assert batch.staged is not None
    assert batch.staged.balance == Balance(ok=6, lost=14)
    assert unbalanced([batch]) == []
    assert stack.rows("SELECT lost FROM {database}.batches FINAL") == [(14,)]
    assert stack.account().places == dict.fromkeys(
        [place for place in sent if place[0] == 0 and place[1] >= 4], 1
    )


def test_records_gone_before_they_were_planned_are_a_gap(new_stack: NewStack) -> None:
    """What expired between two runs is planned, found missing, and holds up nothing."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(5))
    (first,) = stack.run()
    sent += stack.send_numbers(range(5, 10))
    delete_before(stack.kafka, stack.settings.topic, {0: 8})
    with pytest.raises(Gap, match=r"0:\[5,8\) \(3 offsets"):
        stack.run()
    batches = stack.run()
    assert [(batch.ranges, batch.state) for batch in batches[1:]] == [
        ((Range(0, 5, 8),), State.GAP),
        ((Range(0, 8, 10),), State.COMMITTED),
    ]
    assert {batch.arrival_date for batch in batches} == {first.arrival_date}
    assert stack.account().places == dict.fromkeys([*sent[:5], *sent[8:]], 1)


def test_a_start_that_is_gone_is_never_jumped_over(new_stack: NewStack) -> None:
    """Reading itself, too, refuses a start before the log's, or beyond its end."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    delete_before(stack.kafka, stack.settings.topic, {0: 5})
    for range_ in (Range(0, 2, 8), Range(0, 50, 60)):
        with pytest.raises(Gap):
            chunks(stack, range_)


def test_a_topic_made_anew_is_not_taken_for_the_old(new_stack: NewStack) -> None:
    """A batch of the deleted topic waits for a person; the new one's records are all loaded."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    planned = stack.plan(max_offsets=6)
    assert planned is not None
    stack.delete_topic()
    stack.make_topic()
    sent = stack.send_numbers(range(100, 120))
    with pytest.raises(TopicReplaced, match=r"0:\[0,6\)"):
        check_readable(stack.topic, planned.topic_id, planned.ranges)
    with pytest.raises(TopicReplaced):
        stage_batches(stack.worker())
    assert [batch.state for batch in stack.run()] == [State.GAP, State.COMMITTED]
    account = stack.account()
    assert account.places == dict.fromkeys(sent, 1)
    ids = stack.rows("SELECT DISTINCT request_id FROM {database}.events")
    assert {request for (request,) in ids} == {f"request-{n}" for n in range(100, 120)}


def test_a_silent_kafka_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody answers, reading ends with a TransientError and does not hang."""
    monkeypatch.setattr(read, "_SILENCE_S", 0.5)
    client = {"bootstrap.servers": f"127.0.0.1:{unused_port()}", "log_level": "0"}
    with pytest.raises(TransientError, match=r"partitions \[0, 3\] not read to their ends"):
        list(read_ranges(client, "events", [Range(0, 0, 5), Range(3, 0, 1)]))


def test_a_chunk_is_bounded_however_records_grow(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After small records, large ones come in chunks of so many bytes and a few records more."""
    monkeypatch.setattr(read, "CHUNK_BYTES", 200_000)
    stack = new_stack().make_topic(1)
    stack.send_numbers(range(500))
    stack.send(*(value_of(n, b'{"a":"%s"}' % (b"x" * 5_000)) for n in range(500, 800)))
    found = chunks(stack, Range(0, 0, 800))
    assert places(found) == [(0, offset) for offset in range(800)]
    sizes = [sum(map(len, chunk.records["value"].to_pylist())) for chunk in found]
    assert max(sizes) < 200_000 + read._AT_ONCE * 6_000


def test_a_large_record_is_read(new_stack: NewStack) -> None:
    """A record larger than what is queued at once comes whole."""
    stack = new_stack().make_topic(1, **{"max.message.bytes": "4000000"})
    value = value_of(1, b'{"a":"%s"}' % (b"x" * 3_000_000))
    stack.send(value, **{"message.max.bytes": "4000000"})
    (chunk,) = chunks(stack, Range(0, 0, 1))
    assert chunk.records["value"].to_pylist() == [value]
