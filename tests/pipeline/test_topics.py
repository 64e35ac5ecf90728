"""Micro-batches over the main topic and those beside it: each record once, none held up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

import pytest
from confluent_kafka import Consumer, TopicPartition

from assets.pipeline import staging as staging_module
from assets.pipeline.batch import Balance, State
from assets.pipeline.commit import group_id
from assets.pipeline.errors import BatchError, LogTruncated, TopicMissing, TopicReplaced
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import accept_gap
from assets.pipeline.worker import Worker
from orchestration.backlog import look
from orchestration.ledger.batches import all_batches
from orchestration.ledger.gaps import all_gaps
from orchestration.ledger.tables import lanes
from tests.records import Sent, delete_before, too_large, uuid_of, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]


@pytest.fixture
def stack(new_stack: NewStack) -> Stack:
    """A stack with all three topics, of two partitions each."""
    return new_stack().make_topics(2)


def send_everywhere(stack: Stack, first: int = 0) -> dict[str, list[tuple[int, int]]]:
    """Ten records of their own into each topic."""
    sent = {}
    for number, topic in enumerate(stack.settings.topics):
        some = range(first + number * 100, first + number * 100 + 10)
        sent[topic] = stack.send(*(Sent(value_of(n), n % 2) for n in some), topic=topic)
    return sent


def carry(worker: Worker) -> list[BatchError]:
    """A micro-batch as Dagster and `tidemark batch` run it; gives what is wrong with lanes."""
    held: list[BatchError] = []
    stage_batches(worker, held)
    load_batches(worker)
    load_dead_letters(worker)
    return held


def test_one_run_takes_all_topics(stack: Stack) -> None:
    """Every record of every topic is loaded once; main goes first, what is historical last."""
    sent = send_everywhere(stack)
    batches = stack.run()
    assert [batch.topic for batch in batches] == list(stack.settings.topics_by_urgency)
    assert {batch.state for batch in batches} == {State.COMMITTED}
    for topic, places in sent.items():
        assert stack.account_of(topic).places == Counter(places)
    for topic in stack.settings.topics:
        consumer = Consumer({"bootstrap.servers": stack.kafka, "group.id": group_id(topic)})
        try:
            committed = consumer.committed([TopicPartition(topic, at) for at in range(2)], 10)
        finally:
            consumer.close()
        assert [at.offset for at in committed] == [5, 5]


def test_an_event_is_stored_once_over_all_topics(stack: Stack) -> None:
    """Sent again to another topic, in the same run or a later one, a uuid is a duplicate."""
    main, historical, overflow = stack.settings.topics
    stack.send(value_of(1), value_of(2))
    stack.send(value_of(1), value_of(3), topic=overflow)
    stack.run()
    stack.send(value_of(1), value_of(2), value_of(3), topic=historical)
    stack.send(value_of(3), value_of(4))
    stack.run()
    rows = stack.rows("SELECT toString(uuid), _topic, _offset FROM {database}.events ORDER BY 1")
    assert rows == [
        (uuid_of(1), main, 0),
        (uuid_of(2), main, 1),
        (uuid_of(3), overflow, 1),
        (uuid_of(4), main, 3),
    ]
    assert stack.account_of(historical).duplicates == [(0, 0), (0, 1), (0, 2)]


def test_topics_that_nobody_made_are_told_and_skipped(new_stack: NewStack) -> None:
    """On a Kafka with the main topic alone a run says what is missing, and goes well."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(5))
    said: list[str] = []
    worker = Worker(stack.settings, stack.ledger, "run", said.append)
    assert carry(worker) == []
    assert stack.account().places == Counter(sent)
    for topic in stack.settings.topics_by_urgency[1:]:
        assert any(f"has no topic {topic}: " in line for line in said)
    backlog = look(worker.topics.values(), stack.ledger)
    assert [seen.is_missing for seen in backlog.topics] == [False, True, True]
    assert (backlog.unread, backlog.troubles) == (0, [])


def test_a_main_topic_that_is_missing_is_an_error(new_stack: NewStack) -> None:
    """Without the main topic nothing runs, and the error names it."""
    stack = new_stack()
    stack._make(stack.settings.overflow_topic, 1, {})
    with pytest.raises(TopicMissing, match=f"has no topic {stack.settings.topic}$"):
        stage_batches(stack.worker())


def test_a_topic_that_is_made_later_is_taken_from_its_beginning(new_stack: NewStack) -> None:
    """What an operator adds is read by the next run."""
    stack = new_stack().make_topic()
    stack.run()
    overflow = stack.settings.overflow_topic
    stack._make(overflow, 1, {})
    sent = stack.send(value_of(1), topic=overflow)
    stack.run()
    assert stack.account_of(overflow).places == Counter(sent)


@pytest.mark.parametrize("troubled", [0, 1, 2])
def test_a_truncated_topic_holds_up_no_other(stack: Stack, troubled: int) -> None:
    """Whichever topic ends before its plan, the others are loaded, and the trouble is told."""
    send_everywhere(stack)
    stack.run()
    name = stack.settings.topics[troubled]
    with stack.ledger.begin() as connection:
        connection.execute(lanes.update().where(lanes.c.topic == name).values(planned_end=1_000))
    sent = send_everywhere(stack, 1_000)
    (trouble,) = carry(stack.worker())
    assert isinstance(trouble, LogTruncated)
    assert name in str(trouble)
    for topic, places in sent.items():
        loaded = set(stack.account_of(topic).events)
        assert loaded.isdisjoint(places) if topic == name else loaded >= set(places)
    backlog = look(stack.worker().topics.values(), stack.ledger)
    assert list(map(str, backlog.troubles)) == [str(trouble)]


def test_a_gap_in_one_topic_holds_up_no_other(stack: Stack) -> None:
    """Records that retention took of one topic wait for a person; everything else is loaded."""
    send_everywhere(stack)
    stack.run()
    sent = send_everywhere(stack, 1_000)
    historical = stack.settings.historical_topic
    delete_before(stack.kafka, historical, {0: 7})
    (trouble,) = carry(stack.worker())
    assert historical in str(trouble)
    states = {batch.state for batch in all_batches(stack.ledger, historical)}
    assert states == {State.COMMITTED, State.GAP}
    for topic, places in sent.items():
        lost = {(0, 5), (0, 6)} if topic == historical else set()
        assert set(stack.account_of(topic).events) >= set(places) - lost


def test_batches_of_a_topic_that_was_deleted_wait_for_a_person(stack: Stack) -> None:
    """What was planned of a topic that is gone is a gap, and a person may accept it."""
    overflow = stack.settings.overflow_topic
    sent = send_everywhere(stack)
    planned = stack.plan(name=overflow)
    assert planned is not None
    stack.delete_topic(overflow)
    (trouble,) = carry(stack.worker())
    assert isinstance(trouble, TopicReplaced)
    assert f"topic {overflow} was deleted since" in str(trouble)
    assert stack.account().places == Counter(sent[stack.settings.topic])
    (gap,) = all_gaps(stack.ledger, overflow)
    accept_gap(stack.worker(), gap.gap_id, "nobody needs it")
    assert carry(stack.worker()) == []
    (batch,) = all_batches(stack.ledger, overflow)
    assert batch.staged is not None
    assert (batch.state, batch.staged.balance) == (State.COMMITTED, Balance(lost=10))


def test_a_historical_import_does_not_keep_a_run(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its time is over, what is historical goes on with the next run, fresh events first."""
    monkeypatch.setattr(staging_module, "_HISTORICAL_LIMIT_S", 0.0)
    stack = new_stack(batch_max_records=10).make_topics()
    main, historical, overflow = stack.settings.topics
    stack.send(*(value_of(number) for number in range(30)), topic=historical)
    for number, topic in ((100, main), (200, overflow)):
        stack.send(*(value_of(number + n) for n in range(20)), topic=topic)
    assert [batch.topic for batch in stack.run()] == [*[main] * 2, *[overflow] * 2, historical]
    stack.send(value_of(300))
    assert [batch.topic for batch in stack.run()[5:]] == [main, historical]
    assert [batch.topic for batch in stack.run()[7:]] == [historical]
    assert len(stack.account_of(historical).events) == 30


def test_events_without_a_project_and_too_large_ones_are_kept(stack: Stack) -> None:
    """They become dead letters, to the last byte; flags that are new pass through."""
    large, unknown = too_large(1), value_of(2, b"{" + b" " * 99_999 + b"}", project_id=0)
    stack.send(large, unknown, value_of(3, flags=8))
    stack.run()
    rows = stack.rows("SELECT reason, hex(value), detail FROM {database}.dead_letters ORDER BY 1")
    assert [(reason, bytes.fromhex(value)) for reason, value, _ in rows] == [
        ("too_large", large),
        ("unknown_project", unknown),
    ]
    assert rows[0][2] == "an event of 1234567 bytes"
    assert stack.rows("SELECT uuid, flags FROM {database}.events") == [(UUID(uuid_of(3)), 8)]
