"""Planning: every offset is in one range, every batch is of one arrival date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    NewPartitions,
)
from hypothesis import example, given
from hypothesis import strategies as st

from assets.pipeline.batch import Balance, Range, State, batch_id
from assets.pipeline.errors import LeaseHeld, PlanConflict
from assets.pipeline.plan import (
    Cut,
    LogTruncated,
    Watermark,
    cut_next,
    make_batch,
    see_watermark,
    share_out,
)
from assets.pipeline.staging import stage_batches
from assets.pipeline.topic import Topic, TopicIdentity
from orchestration.ledger.attempts import attempt
from orchestration.ledger.batches import planned_ends, record_plan
from tests.records import Sent, transaction, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]

TODAY = date(2026, 3, 5)
HOUR_MS = 3_600_000
CREATE_TIME = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}


def noon_ms(day: date, hours: int = 0) -> int:
    """Noon of a day and some hours more, in ms since 1970."""
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1000 + (
        hours * HOUR_MS
    )


class LogInMemory(Topic):
    """A topic's metadata, worked out from the timestamps (ms) of its records."""

    def __init__(self, lanes: Mapping[int, list[int]], lows: Mapping[int, int]) -> None:
        self.name = "in memory"
        self.lanes = lanes
        self.first = lows

    def identity(self) -> TopicIdentity:
        return TopicIdentity("cluster", "topic-id", len(self.lanes))

    def lows(self, partitions):  # type: ignore[no-untyped-def]
        return {partition: self.first[partition] for partition in partitions}

    def highs(self, partitions):  # type: ignore[no-untyped-def]
        return {partition: len(self.lanes[partition]) for partition in partitions}

    def starts_of(self, days: Mapping[int, date]) -> dict[int, int]:
        found = {}
        for partition, day in days.items():
            midnight = noon_ms(day, -12)
            offsets = range(self.first[partition], len(self.lanes[partition]))
            later = (at for at in offsets if self.lanes[partition][at] >= midnight)
            found[partition] = next(later, -1)
        return found


def drain(topic: Topic, max_offsets: int, ends: dict[int, int] | None = None) -> list[Cut]:
    """All the cuts that a run makes; its lanes are open as the first run opens them."""
    watermark = see_watermark(topic)
    ends = topic.lows(watermark.highs) if ends is None else dict(ends)
    cuts = []
    while (cut := cut_next(topic, watermark, ends, max_offsets, TODAY)) is not None:
        cuts.append(cut)
        for range_ in cut.ranges:
            assert range_.start == ends.get(range_.partition, range_.start)
            ends[range_.partition] = range_.end
    return cuts


@given(
    st.dictionaries(st.integers(0, 20), st.integers(0, 1_000), min_size=1),
    st.integers(1, 5_000),
)
def test_shares_are_even_and_use_up_the_budget(wanted: dict[int, int], budget: int) -> None:
    """No lane gets more than it has; who got less than another got all that it has."""
    shares = share_out(wanted, budget)
    assert shares.keys() == wanted.keys()
    assert sum(shares.values()) == min(budget, sum(wanted.values()))
    assert all(0 <= shares[lane] <= wanted[lane] for lane in wanted)
    largest = max(shares.values())
    assert all(shares[lane] in (wanted[lane], largest, largest - 1) for lane in wanted)


times = st.lists(
    st.integers(-24 * 40, 24 * 3).map(lambda hours: noon_ms(TODAY, hours)), max_size=12
)


@example(lanes=[[noon_ms(TODAY, 48), noon_ms(TODAY)]], lows=[0], max_offsets=1)
@given(
    st.lists(times, min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.integers(1, 15),
)
def test_dates_tile_the_log(lanes: list[list[int]], lows: list[int], max_offsets: int) -> None:
    """Whatever the order of times and clocks, no hole, no overlap, and one date a batch."""
    first = {
        number: min(low, len(lane))
        for number, (lane, low) in enumerate(zip(lanes, lows, strict=False))
    }
    topic = LogInMemory(dict(enumerate(lanes)), first)
    cuts = drain(topic, max_offsets)
    covered: dict[int, list[int]] = {number: [] for number in first}
    for cut in cuts:
        assert 0 < sum(map(len, cut.ranges)) <= max_offsets
        for range_ in cut.ranges:
            offsets = range(range_.start, range_.end)
            covered[range_.partition].extend(offsets)
            for offset in offsets:
                newest = max(lanes[range_.partition][first[range_.partition] : offset + 1])
                assert datetime.fromtimestamp(newest / 1000, UTC).date() == cut.arrival_date
    for number, lane in enumerate(lanes):
        assert covered[number] == list(range(first[number], len(lane)))
    assert [cut.arrival_date for cut in cuts] == sorted(cut.arrival_date for cut in cuts)


def test_a_log_that_ends_before_the_plan_is_an_error() -> None:
    """Records that Kafka lost are told with both numbers, and nothing is planned."""
    topic = LogInMemory({0: [noon_ms(TODAY)] * 5}, {0: 0})
    with pytest.raises(LogTruncated, match="ends at 5, but is planned up to 8"):
        drain(topic, 10, {0: 8})


def test_records_after_the_watermark_wait() -> None:
    """A run drains up to the ends it saw at its beginning, though records keep coming."""
    topic = LogInMemory({0: [noon_ms(TODAY)] * 9}, {0: 0})
    watermark = Watermark(topic.identity(), {0: 5})
    cut = cut_next(topic, watermark, {0: 2}, 100, TODAY)
    assert cut == Cut(TODAY, (Range(0, 2, 5),))
    assert cut_next(topic, watermark, {0: 5}, 100, TODAY) is None


@pytest.mark.parametrize(
    ("low", "cuts"),
    [
        (6, [Cut(TODAY - timedelta(days=1), (Range(0, 2, 6),)), Cut(TODAY, (Range(1, 2, 9),))]),
        (9, [Cut(TODAY, (Range(0, 2, 9),)), Cut(TODAY, (Range(1, 2, 9),))]),
    ],
)
def test_what_retention_took_is_a_batch_of_its_own(low: int, cuts: list[Cut]) -> None:
    """A lane goes on where its plan ended, though Kafka has dropped that record, or all of them."""
    times = [noon_ms(TODAY, -24)] * 8 + [noon_ms(TODAY)]
    topic = LogInMemory({0: times, 1: [noon_ms(TODAY)] * 9}, {0: low, 1: 0})
    found = drain(topic, 100, {0: 2, 1: 2})
    assert found[0] == cuts[0]
    assert found[-1].ranges[-1] == cuts[-1].ranges[0]
    assert sum(len(range_) for cut in found for range_ in cut.ranges) == 14


def test_a_batch_is_named_by_what_it_holds() -> None:
    """The same ranges of the same topic give the same name, in any order; others another."""
    ranges = (Range(0, 0, 5), Range(1, 2, 3))
    name = batch_id("cluster", "topic", ranges, 0)
    assert batch_id("cluster", "topic", ranges[::-1], 0) == name
    others = [
        batch_id("other", "topic", ranges, 0),
        batch_id("cluster", "other", ranges, 0),
        batch_id("cluster", "topic", ranges[:1], 0),
        batch_id("cluster", "topic", ranges, 1),
    ]
    assert len({name, *others}) == 5


def test_kafka_cuts_at_midnight(new_stack: NewStack) -> None:
    """Records of two dates give two batches of one date each, out-of-order times included."""
    stack = new_stack().make_topic(2, **CREATE_TIME)
    yesterday = TODAY - timedelta(days=1)
    times = [
        *((0, noon_ms(yesterday, hours)) for hours in (0, 11, 3)),
        *((0, noon_ms(TODAY, hours)) for hours in (-12, 1)),
        (0, noon_ms(yesterday)),  # late, and behind records of the next day
        *((1, noon_ms(yesterday, hours)) for hours in (-12, 11)),
    ]
    sent = stack.send(
        *(Sent(value_of(n), partition, time) for n, (partition, time) in enumerate(times))
    )
    batches = stack.run()
    assert [(batch.arrival_date, batch.ranges) for batch in batches] == [
        (yesterday, (Range(0, 0, 3), Range(1, 0, 2))),
        (TODAY, (Range(0, 3, 6),)),
    ]
    rows = stack.rows(
        "SELECT arrival_date, _partition, _offset FROM {database}.events ORDER BY ALL"
    )
    assert rows == sorted(
        (batch.arrival_date, range_.partition, offset)
        for batch in batches
        for range_ in batch.ranges
        for offset in range(range_.start, range_.end)
    )
    assert len(rows) == len(sent)


def test_new_partitions_are_read_from_their_beginning(new_stack: NewStack) -> None:
    """Partitions that were added are planned from their first record on."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(5))
    stack.run()
    name = stack.settings.topic
    admin = AdminClient({**stack.settings.kafka_client})
    admin.create_partitions([NewPartitions(name, 3)])[name].result()
    stack.await_partitions(3)
    sent += stack.send(*(Sent(value_of(number), number % 3) for number in range(5, 14)))
    batches = stack.run()
    assert batches[-1].ranges == (Range(0, 5, 8), Range(1, 0, 3), Range(2, 0, 3))
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_aborted_records_are_absent(new_stack: NewStack) -> None:
    """Aborted records and markers are counted as absent, also at a range's end, and not loaded."""
    stack = new_stack().make_topic()
    name = stack.settings.topic
    transaction(
        stack.kafka, name, f"{name}-a", map(Sent, map(value_of, range(5)))
    ).commit_transaction()
    transaction(
        stack.kafka, name, f"{name}-b", map(Sent, map(value_of, range(5, 9)))
    ).abort_transaction()
    (batch,) = stack.run()
    assert batch.ranges == (Range(0, 0, 11),)
    assert batch.staged is not None
    assert batch.staged.balance == Balance(ok=5, absent=6)
    assert stack.account().places == {(0, offset): 1 for offset in range(5)}


def test_ranges_may_end_at_markers_and_aborted_records(new_stack: NewStack) -> None:
    """Wherever a range ends among aborted records, it is read to its end and accounted for."""
    stack = new_stack(batch_max_records=1).make_topic()
    name = stack.settings.topic
    transaction(stack.kafka, name, f"{name}-a", [Sent(value_of(0))]).abort_transaction()
    transaction(stack.kafka, name, f"{name}-b", [Sent(value_of(1))]).commit_transaction()
    stack.send(value_of(2))
    batches = stack.run()
    assert [batch.ranges for batch in batches] == [(Range(0, at, at + 1),) for at in range(5)]
    balances = [batch.staged.balance for batch in batches if batch.staged]
    assert [balance.absent for balance in balances] == [1, 1, 0, 1, 0]
    assert stack.account().places == {(0, 2): 1, (0, 4): 1}


def test_an_open_transaction_is_not_planned(new_stack: NewStack) -> None:
    """Planning stops before an open transaction, and goes on when it is committed."""
    stack = new_stack().make_topic()
    stack.send(value_of(0))
    name = stack.settings.topic
    producer = transaction(stack.kafka, name, f"{name}-a", [Sent(value_of(1))])
    stack.send(value_of(2))
    (batch,) = stack.run()
    assert batch.ranges == (Range(0, 0, 1),)
    producer.commit_transaction()
    assert stack.run()[-1].ranges == (Range(0, 1, 4),)
    assert stack.account().places == {(0, 0): 1, (0, 1): 1, (0, 2): 1}


def test_of_two_planners_one_wins(new_stack: NewStack) -> None:
    """The second to store a plan of the same start is refused, and nothing of it is stored."""
    stack = new_stack().make_topic(2)
    stack.send_numbers(range(10), partitions=2)
    watermark = see_watermark(stack.topic)
    plans = []
    for max_offsets in (10, 4):
        cut = cut_next(stack.topic, watermark, {}, max_offsets)
        assert cut is not None
        plans.append(
            make_batch(
                cut,
                watermark.identity,
                topic=stack.settings.topic,
                run_id="run",
                code_version="1",
                planned_at=1,
            )
        )
    with stack.worker().lease() as lease:
        record_plan(stack.ledger, lease, plans[1])
        with pytest.raises(PlanConflict, match="planned up to 2, not 0"):
            record_plan(stack.ledger, lease, plans[0])
    assert stack.batches() == [plans[1]]
    identity = watermark.identity
    assert planned_ends(stack.ledger, identity.cluster_id, identity.topic_id) == {0: 2, 1: 2}
    stack.run()
    assert stack.account().places == {(p, at): 1 for p in range(2) for at in range(5)}


def test_two_workers_do_not_work_on_one_topic(new_stack: NewStack) -> None:
    """While one holds the topic's lease the other is refused at once."""
    stack = new_stack().make_topic()
    stack.send(value_of(0))
    with stack.worker().lease(), pytest.raises(LeaseHeld, match="is at work on topic/"):
        stage_batches(stack.worker("second"))
    assert stack.batches() == []
    planned = stack.plan()
    assert planned is not None
    with (
        stack.worker().lease(),
        attempt(stack.ledger, planned.batch_id, "stage", "the-first"),
        pytest.raises(LeaseHeld, match=f"run the-first is at stage of batch {planned.batch_id} s"),
    ):
        stage_batches(stack.worker("second"))
    assert [batch.state for batch in stack.run()] == [State.COMMITTED]
