"""Standing: how far loading has come, how old what is missing is, and when Kafka forgets it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from assets.pipeline.errors import BatchError, LogTruncated
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.topic import Retention
from assets.pipeline.waiting import accept_gap
from orchestration.ledger.connection import now_us
from orchestration.ledger.gaps import all_gaps
from orchestration.ledger.tables import lanes
from orchestration.standing import (
    LaneStanding,
    Standing,
    TopicStanding,
    complete_of,
    stand,
)
from tests.records import Sent, delete_before, transaction, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]

CREATE_TIME = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
DAY_US = 86_400 * 1_000_000
NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


def at(hours: float) -> int:
    """So many hours after noon, in ms."""
    return int((NOON + timedelta(hours=hours)).timestamp() * 1000)


def look(stack: Stack) -> Standing:
    """The standing of all topics now."""
    worker = stack.worker()
    return stand(worker.topics.values(), stack.ledger, stack.settings.kafka_client)


def timed(*hours: float, partition: int = 0, first: int = 0) -> list[Sent]:
    """Records appended at these hours."""
    return [Sent(value_of(number), partition, at(hour)) for number, hour in enumerate(hours, first)]


def test_what_is_loaded_is_complete_up_to_now(new_stack: NewStack) -> None:
    """With nothing left to load, all that was there before the look is queryable."""
    stack = new_stack().make_topics(2)
    stack.send_numbers(range(10), 2)
    stack.run()
    before = now_us()
    standing = look(stack)
    assert before <= (standing.complete.before or 0) <= now_us()
    assert (standing.complete.held_by, standing.complete.is_bound) == ("", False)
    main = standing.topics[0]
    assert (main.not_loaded, main.not_planned, main.oldest, main.expires_at) == (0, 0, None, None)
    assert main.earliest_at is not None
    assert main.earliest_at <= before


def test_an_empty_kafka_is_complete(new_stack: NewStack) -> None:
    """Topics without a record, and topics that nobody has made, hold nothing back."""
    stack = new_stack().make_topic(2)
    standing = look(stack)
    assert standing.complete.before == standing.seen_at
    assert [topic.is_missing for topic in standing.topics] == [False, True, True]


def test_the_oldest_record_that_is_not_loaded_counts(new_stack: NewStack) -> None:
    """Whatever its batch's state: waiting in Kafka, planned, staged. Loading moves it on."""
    stack = new_stack(batch_max_records=2).make_topic(2, **CREATE_TIME)
    stack.send(*timed(0, 1, 2, 3), *timed(0.5, 1.5, partition=1, first=10))
    standing = look(stack)
    assert standing.complete.before == at(0) * 1000
    assert standing.complete.held_by == f"partition 0 of {stack.settings.topic} at offset 0"
    assert standing.topics[0].not_loaded == standing.topics[0].not_planned == 6

    staged = stage_batches(stack.worker())
    assert len(staged) == 3
    standing = look(stack)
    assert standing.complete.before == at(0) * 1000
    assert (standing.topics[0].not_loaded, standing.topics[0].not_planned) == (6, 0)
    assert standing.topics[0].not_loaded_bytes == pytest.approx(
        sum(batch.staged.bytes_read for batch in staged if batch.staged), rel=0.2
    )

    load_batches(stack.worker())
    load_dead_letters(stack.worker())
    stack.send(*timed(5, first=20))
    assert look(stack).complete.before == at(5) * 1000
    stack.run()
    assert look(stack).complete.held_by == ""


def test_the_topic_that_is_behind_holds_back_all(new_stack: NewStack) -> None:
    """Completeness is over all topics; each topic has its own beside it."""
    stack = new_stack().make_topic()
    _, historical, _ = stack.settings.topics
    stack._make(historical, 1, CREATE_TIME)
    stack.send(*timed(1), topic=historical)
    standing = look(stack)
    assert standing.complete.before == at(1) * 1000
    assert historical in standing.complete.held_by
    own = {topic.topic: complete_of(topic).before for topic in standing.topics}
    assert own[stack.settings.topic] == standing.seen_at
    assert own[historical] == at(1) * 1000


def test_a_gap_holds_from_the_day_on_which_it_arrived(new_stack: NewStack) -> None:
    """What Kafka has lost has no time of its own any more; accepted, it is accounted for."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    stack.send(*timed(0, 1))
    stack.run()
    stack.send(*timed(24, 25, 26, first=10))
    planned = stack.plan()
    assert planned is not None
    delete_before(stack.kafka, stack.settings.topic, {0: 4})
    with pytest.raises(BatchError, match="retention"):
        stack.run()
    stack.send(*timed(30, first=20))
    standing = look(stack)
    midnight = int((NOON + timedelta(hours=12)).timestamp() * 1_000_000)
    assert (standing.complete.before, standing.complete.is_bound) == (midnight, True)
    assert standing.topics[0].lanes[0].lost == 2
    (gap,) = all_gaps(stack.ledger, stack.settings.topic)
    accept_gap(stack.worker(), gap.gap_id, "old news")
    stack.run()
    standing = look(stack)
    assert (standing.complete.held_by, standing.topics[0].lanes[0].lost) == ("", 0)


def test_records_that_were_lost_before_any_plan_hold_it_too(new_stack: NewStack) -> None:
    """Up to the day of the last batch; where there was none, nothing is claimed."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    stack.send(*timed(0, 1))
    stack.run()
    admin = AdminClient({"bootstrap.servers": stack.kafka})
    admin.create_partitions([NewPartitions(stack.settings.topic, 2)])[stack.settings.topic].result()
    stack.await_partitions(2)
    stack.send(*timed(24, 25, first=10))
    delete_before(stack.kafka, stack.settings.topic, {0: 3})
    noon = NOON - timedelta(hours=12)
    assert look(stack).complete.before == int(noon.timestamp() * 1_000_000)
    stack.send(*timed(24, 25, partition=1, first=20))
    delete_before(stack.kafka, stack.settings.topic, {1: 1})
    standing = look(stack)
    assert standing.complete.before is None
    assert "partition 1" in standing.complete.held_by
    assert [lane.lost for lane in standing.topics[0].lanes] == [1, 1]


def await_committed(stack: Stack, end: int) -> None:
    """Return when a reader of committed records sees the partition up to there."""
    while stack.topic.highs([0])[0] < end:
        pass


def test_an_open_transaction_is_not_complete(new_stack: NewStack) -> None:
    """Records behind the beginning of an open transaction were received and cannot be read yet."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    stack.send(*timed(0))
    stack.run()
    producer = transaction(stack.kafka, stack.settings.topic, "open", timed(1, first=10))
    standing = look(stack)
    assert standing.topics[0].not_loaded == 0
    assert "offset 1" in standing.complete.held_by
    producer.commit_transaction(30)
    await_committed(stack, 3)
    stack.run()
    assert look(stack).complete.held_by == ""


def test_markers_at_the_end_are_no_records(new_stack: NewStack) -> None:
    """A lane of which only a transaction's marker is left has nothing to load."""
    stack = new_stack().make_topic()
    producer = transaction(stack.kafka, stack.settings.topic, "marked", [Sent(value_of(1))])
    producer.commit_transaction(30)
    await_committed(stack, 2)
    stack.run()
    with stack.ledger.begin() as connection:  # as if planned before the marker was written
        connection.execute(lanes.update().values(planned_end=1))
    assert look(stack).complete.held_by == ""


def test_a_topic_that_was_made_anew_owes_what_the_old_one_had(new_stack: NewStack) -> None:
    """A batch of a deleted topic that nobody can load any more is not complete by forgetting."""
    stack = new_stack().make_topic(1, **CREATE_TIME)
    stack.send(*timed(0))
    assert stack.plan() is not None
    stack.delete_topic()
    stack.make_topic(1, **CREATE_TIME)
    standing = look(stack)
    assert standing.complete.before == int((NOON - timedelta(hours=12)).timestamp() * 1_000_000)
    assert "deleted" in standing.complete.held_by


def test_a_lane_that_cannot_be_read_on_is_told(new_stack: NewStack) -> None:
    """Nothing is claimed of a log that ends before what was planned; other topics are told."""
    stack = new_stack().make_topics()
    stack.send_numbers(range(3))
    stack.run()
    with stack.ledger.begin() as connection:
        connection.execute(
            lanes.update().where(lanes.c.topic == stack.settings.topic).values(planned_end=9)
        )
    standing = look(stack)
    assert isinstance(standing.topics[0].trouble, LogTruncated)
    assert [topic.trouble for topic in standing.topics[1:]] == [None, None]
    assert standing.complete.before is None
    assert "is planned up to 9" in standing.complete.held_by


def test_retention_is_read_from_the_topic(new_stack: NewStack) -> None:
    """Both bounds; none for a topic that keeps everything, or that is only compacted."""
    stack = new_stack()
    stack._make(stack.settings.topic, 1, {"retention.ms": "3600000", "retention.bytes": "1000"})
    assert stack.topic.retention() == Retention(3_600_000, 1_000)
    for name, config in (
        ("for-ever", {"retention.ms": "-1"}),
        ("compacted", {"cleanup.policy": "compact"}),
    ):
        other = new_stack(topic=f"{stack.settings.topic}-{name}").make_topic(1, **config)
        assert other.topic.retention() == Retention(None, None)


def test_the_oldest_unread_record_expires_by_its_age(new_stack: NewStack) -> None:
    """A record that is staged is out of danger; the oldest that is not, goes retention.ms later."""
    day = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(86_400_000)}
    stack = new_stack().make_topic(1, **day)
    stack.send_numbers(range(3))
    [main, *_] = look(stack).topics
    assert main.oldest is not None
    assert main.expires_at == (main.oldest.oldest_at or 0) + DAY_US
    stage_batches(stack.worker())
    assert look(stack).topics[0].expires_at is None


def test_what_stands_behind_a_batch_that_waits_is_not_counted_with_it(
    new_stack: NewStack,
) -> None:
    """A batch that waits for a person holds completeness; what is loaded behind it is loaded."""
    stack = new_stack(batch_max_records=3).make_topic(1, **CREATE_TIME)
    stack.send(*timed(0, 1, 2))
    [first] = stage_batches(stack.worker())
    assert first.staged is not None
    stack.lake_file(first.staged.files[0].path).write_bytes(b"cut")
    with pytest.raises(BatchError):
        load_batches(stack.worker())  # planned again, and Kafka loses it before it is read
    delete_before(stack.kafka, stack.settings.topic, {0: 2})
    stack.send(*timed(3, 4, 5, 6, first=10))
    with pytest.raises(BatchError):
        stack.run()
    load_batches(stack.worker())
    stack.send(*timed(7, first=20))
    standing = look(stack)
    [lane] = standing.topics[0].lanes
    assert (lane.loaded_end, lane.planned_end, lane.end) == (0, 7, 8)
    assert (lane.not_loaded, lane.lost, lane.unread_from) == (3 + 1, 2, 2)
    assert standing.complete.before == int((NOON - timedelta(hours=12)).timestamp() * 1_000_000)
    (gap,) = all_gaps(stack.ledger, stack.settings.topic)
    accept_gap(stack.worker(), gap.gap_id, "old news")
    [lane] = look(stack).topics[0].lanes
    assert (lane.loaded_end, lane.not_loaded, lane.lost) == (2, 1 + 1, 0)


def test_a_record_that_is_staged_is_out_of_danger(new_stack: NewStack) -> None:
    """How long Kafka keeps the oldest unread one goes by that one's time, not by an older one's."""
    stack = new_stack().make_topic(1, **{"message.timestamp.type": "CreateTime"})
    now = now_us() // 1000
    stack.send(*(Sent(value_of(n), 0, now - (4 - n) * 3_600_000) for n in range(2)))
    stage_batches(stack.worker())
    stack.send(Sent(value_of(5), 0, now - 3_600_000))
    [main, *_] = look(stack).topics
    assert main.oldest is not None
    assert main.oldest.oldest_at == (now - 4 * 3_600_000) * 1000
    assert main.lanes[0].unread_at == (now - 3_600_000) * 1000
    assert main.retention.ms is not None
    assert main.expires_at == (now - 3_600_000 + main.retention.ms) * 1000


def lane(**values: int | None) -> LaneStanding:
    """A lane with 100 records, of which 40 are loaded, the oldest of an hour ago."""
    defaults = {
        "earliest": 0,
        "loaded_end": 40,
        "planned_end": 40,
        "end": 100,
        "log_end": 100,
        "unread_from": 40,
        "earliest_at": NOW - HOUR,
        "unread_at": NOW - HOUR // 2,
    }
    return LaneStanding(0, **{**defaults, **values})  # type: ignore[arg-type]


HOUR = 3_600 * 1_000_000
NOW = 1_000 * HOUR


@pytest.mark.parametrize(
    ("lane_", "retention", "hours"),
    [
        pytest.param(lane(), Retention(None, None), None, id="kept for ever"),
        pytest.param(lane(unread_from=None), Retention(1, 1), None, id="nothing unread"),
        pytest.param(lane(), Retention(3 * 3_600_000, None), 2.5, id="by age"),
        pytest.param(
            # 100 records of 10 bytes an hour; 60 of them are behind the oldest unread one
            lane(), Retention(None, 1_600), 1.0, id="by size",
        ),
        pytest.param(lane(), Retention(3 * 3_600_000, 1_600), 1.0, id="whichever is first"),
        pytest.param(lane(), Retention(None, 600), 0.0, id="full already"),
        pytest.param(
            lane(unread_at=None),
            Retention(3 * 3_600_000, None),
            2.0,
            id="not before the oldest record, where its own time is not known",
        ),
    ],
)  # fmt: skip
def test_when_the_oldest_unread_record_goes(
    lane_: LaneStanding, retention: Retention, hours: float | None
) -> None:
    """By age it is known, by size it is estimated from how the log has grown."""
    topic = TopicStanding("events", NOW, "id", (lane_,), retention, record_bytes=10.0)
    expected = None if hours is None else NOW + int(hours * HOUR)
    assert topic.expires_at == expected
