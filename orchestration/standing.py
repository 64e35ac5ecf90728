"""Standing: how far each topic has come, how old what is missing is, and how long Kafka keeps it.

    Kafka's metadata ─┐                                  ┌─▶ lag in records and bytes
    ledger's lanes ───┼─▶ lanes ─▶ oldest record of each ┼─▶ when the oldest unread one expires
    one record a lane ┘            that is not loaded    └─▶ completeness: all before T is loaded

Invariant: completeness is never said to be later than it is. Where the time of a record that is not
loaded cannot be known, because Kafka no longer has it, the day on which it arrived counts from its
beginning; where not even that is known, nothing is said. Times are µs since 1970.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date

from sqlalchemy import Engine

from assets.pipeline.batch import WAITING, Range
from assets.pipeline.errors import BatchError, KafkaAway, LaneTrouble, TopicMissing
from assets.pipeline.first_records import appended_at
from assets.pipeline.plan import Watermark, unplanned_starts
from assets.pipeline.topic import Retention, Topic, midnight_ms
from orchestration.ledger.batches import average_record_bytes, batch_at, oldest_date_not_loaded
from orchestration.ledger.connection import now_us
from orchestration.ledger.lanes import Lane, lanes_of

_UNBOUNDED = Retention(None, None)


@dataclass(frozen=True)
class LaneStanding:
    """One partition of a topic.

    `end` is what a reader of committed records sees, `log_end` has open transactions as well.
    Below `loaded_end` everything is loaded; `not_loaded` counts offsets whose batch is not loaded,
    or that no batch holds yet. `lost` are offsets that retention has taken before they were read.
    `unread_from` is the oldest offset that Kafka has and the lake has not, None when there is none.

    `oldest_at` is when the oldest record that is not loaded was appended, or before that if
    `is_bound`; None when there is no such record (`is_complete`) or its time is not known.
    `unread_at` is the same of the oldest unread one, `earliest_at` of the oldest in Kafka.
    `waits_for_a_person`: the batch of that record does, so no worker moves `loaded_end`; then
    `due_from` is the oldest offset after it that workers are to load, appended at `due_at`.
    """

    partition: int
    earliest: int
    loaded_end: int
    planned_end: int
    end: int
    log_end: int
    not_loaded: int = 0
    lost: int = 0
    unread_from: int | None = None
    earliest_at: int | None = None
    oldest_at: int | None = None
    unread_at: int | None = None
    is_bound: bool = False
    is_complete: bool = False
    waits_for_a_person: bool = False
    due_from: int | None = None
    due_at: int | None = None

    @property
    def not_planned(self) -> int:
        """Offsets that no batch holds yet."""
        return self.end - self.planned_end


@dataclass(frozen=True)
class TopicStanding:
    """One topic, or why nothing can be said of it. `record_bytes` is the average of a value."""

    topic: str
    seen_at: int
    topic_id: str = ""
    lanes: tuple[LaneStanding, ...] = ()
    retention: Retention = _UNBOUNDED
    record_bytes: float | None = None
    trouble: BatchError | None = None

    @property
    def is_missing(self) -> bool:
        """Whether nobody has made the topic."""
        return isinstance(self.trouble, TopicMissing)

    @property
    def not_loaded(self) -> int:
        """Records that are not loaded."""
        return sum(lane.not_loaded for lane in self.lanes)

    @property
    def not_planned(self) -> int:
        """Records that no batch holds yet."""
        return sum(lane.not_planned for lane in self.lanes)

    @property
    def lost(self) -> int:
        """Records that retention has taken before they were read."""
        return sum(lane.lost for lane in self.lanes)

    @property
    def not_loaded_bytes(self) -> int | None:
        """About how many bytes of values these are; None before the first batch was staged."""
        return None if self.record_bytes is None else int(self.not_loaded * self.record_bytes)

    @property
    def oldest(self) -> LaneStanding | None:
        """The lane whose oldest record that is not loaded is the oldest of all known."""
        known = [lane for lane in self.lanes if lane.oldest_at is not None]
        return min(known, key=lambda lane: lane.oldest_at or 0, default=None)

    @property
    def earliest_at(self) -> int | None:
        """When the oldest record that Kafka still has was appended."""
        known = [lane.earliest_at for lane in self.lanes if lane.earliest_at is not None]
        return min(known, default=None)

    @property
    def expires_at(self) -> int | None:
        """Before when Kafka keeps every record that is not read yet, as far as it can be told.

        None when nothing is unread or nothing bounds it. By bytes it is an estimate: the log goes
        on growing as it has grown, and its records are as large as those read last.
        """
        times = [
            self._expires_at(lane, lane.unread_from)
            for lane in self.lanes
            if lane.unread_from is not None
        ]
        return min((at for at in times if at is not None), default=None)

    def _expires_at(self, lane: LaneStanding, unread_from: int) -> int | None:
        times = []
        # Where its own time is not known, the oldest record's: that one goes earlier.
        unread_at = lane.earliest_at if lane.unread_at is None else lane.unread_at
        if self.retention.ms is not None and unread_at is not None:
            times.append(unread_at + self.retention.ms * 1000)
        if self.retention.bytes is not None and self.record_bytes:
            left = self.retention.bytes - (lane.end - unread_from) * self.record_bytes
            age = self.seen_at - (lane.earliest_at or self.seen_at)
            if left <= 0:
                times.append(self.seen_at)
            elif age > 0 and lane.end > lane.earliest:
                bytes_a_us = (lane.end - lane.earliest) * self.record_bytes / age
                times.append(self.seen_at + int(left / bytes_a_us))
        return min(times, default=None)


@dataclass(frozen=True)
class Completeness:
    """Everything appended before `before` is loaded or accounted for.

    None when that cannot be said; `held_by` says what stands in the way, empty for nothing.
    `is_bound` when it may be later than said.
    """

    before: int | None
    is_bound: bool = False
    held_by: str = ""


@dataclass(frozen=True)
class Standing:
    """All topics, and what is complete over all of them."""

    seen_at: int
    topics: tuple[TopicStanding, ...]
    complete: Completeness


def stand(topics: Collection[Topic], ledger: Engine, client: Mapping[str, str]) -> Standing:
    """How the topics stand; the first one is the main one.

    Raises KafkaAway when that one cannot be seen. Trouble with others, and with lanes, is told.
    """
    seen_at = now_us()  # before anything is asked: what is appended meanwhile is not spoken of
    seen: list[TopicStanding] = []
    for topic in topics:
        try:
            seen.append(_topic_standing(topic, ledger, seen_at))
        except KafkaAway as error:
            if not seen and not isinstance(error, TopicMissing):
                raise
            seen.append(TopicStanding(topic.name, seen_at, trouble=error))
        except LaneTrouble as error:
            seen.append(TopicStanding(topic.name, seen_at, trouble=error))
    seen = _with_times(seen, ledger, client)
    names = [topic.name for topic in topics]
    elsewhere = oldest_date_not_loaded(ledger, names, [topic.topic_id for topic in seen])
    return Standing(seen_at, tuple(seen), _all_complete(seen_at, seen, elsewhere))


def complete_of(topic: TopicStanding) -> Completeness:
    """Up to when everything of one topic is loaded."""
    if topic.is_missing:
        return Completeness(topic.seen_at)
    if topic.trouble is not None:
        return Completeness(None, held_by=f"{topic.topic}: {topic.trouble}")
    best = Completeness(topic.seen_at)
    for lane in topic.lanes:
        if lane.is_complete:
            continue
        held_by = f"partition {lane.partition} of {topic.topic} at offset {lane.loaded_end:,}"
        if lane.oldest_at is None:
            return Completeness(None, held_by=f"{held_by}, whose time is not known")
        if not best.held_by or lane.oldest_at < (best.before or 0):
            best = Completeness(min(lane.oldest_at, topic.seen_at), lane.is_bound, held_by)
    return best


def _all_complete(
    seen_at: int, topics: Collection[TopicStanding], elsewhere: date | None
) -> Completeness:
    """Up to when everything is loaded: as far as the topic that has come the least far."""
    each = [complete_of(topic) for topic in topics]
    if elsewhere is not None:
        held_by = f"a batch of {elsewhere} whose topic was deleted"
        each.append(Completeness(_us(midnight_ms(elsewhere)), True, held_by))
    unknown = next((complete for complete in each if complete.before is None), None)
    held = [complete for complete in each if complete.held_by]
    return unknown or min(held, key=lambda c: c.before or 0, default=Completeness(seen_at))


def _topic_standing(topic: Topic, ledger: Engine, seen_at: int) -> TopicStanding:
    identity = topic.identity()
    # Before Kafka's ends, which a worker may be about to plan up to and to load.
    known = lanes_of(ledger, identity.cluster_id, identity.topic_id)
    planned = {partition: lane.planned_end for partition, lane in known.items()}
    partitions = range(identity.partitions)
    watermark = Watermark(identity, topic.highs(partitions))
    unplanned_starts(topic, watermark, planned)  # raises LogTruncated, as planning does
    lows = topic.lows(partitions)
    log_ends = topic.log_ends(partitions)
    earliest_times = topic.oldest_times(partitions)
    lanes = []
    for partition in partitions:
        # As planning takes them: a topic from where it begins, a partition added later from 0.
        lane = known.get(partition, Lane(0 if known else lows[partition]))
        low, high = lows[partition], watermark.highs[partition]
        waits = any(
            each.range.start == lane.loaded_end and each.state in WAITING for each in lane.open
        )
        due = [each.range.start for each in lane.open if each.state not in WAITING]
        due += [lane.planned_end] if lane.planned_end < high else []
        unread = [each.range for each in lane.open if each.is_unread]
        unread.append(Range(partition, lane.planned_end, max(lane.planned_end, high)))
        lanes.append(
            LaneStanding(
                partition,
                earliest=low,
                loaded_end=lane.loaded_end,
                planned_end=lane.planned_end,
                end=high,
                log_end=log_ends[partition],
                not_loaded=sum(len(each.range) for each in lane.open) + len(unread[-1]),
                lost=sum(min(r.end, low) - r.start for r in unread if r.start < min(r.end, low)),
                unread_from=min(
                    (max(r.start, low) for r in unread if max(r.start, low) < r.end), default=None
                ),
                earliest_at=_us(earliest_times.get(partition)),
                waits_for_a_person=waits,
                due_from=min(due, default=None) if waits else None,
            )
        )
    return TopicStanding(
        topic.name,
        seen_at,
        identity.topic_id,
        tuple(lanes),
        _retention(topic),
        average_record_bytes(ledger, topic.name),
    )


def _retention(topic: Topic) -> Retention:
    try:
        return topic.retention()
    except KafkaAway:  # to be allowed to read a topic does not include its configuration
        return _UNBOUNDED


def _with_times(
    topics: Collection[TopicStanding], ledger: Engine, client: Mapping[str, str]
) -> list[TopicStanding]:
    """The topics with the times of each lane's oldest record that is not loaded, or not read."""
    lanes = [(topic, lane) for topic in topics for lane in topic.lanes]
    not_loaded = appended_at(
        client,
        {
            (topic.topic, lane.partition): lane.loaded_end
            for topic, lane in lanes
            if lane.earliest <= lane.loaded_end < lane.log_end
        },
    )
    unread = appended_at(
        client,
        {
            (topic.topic, lane.partition): lane.unread_from
            for topic, lane in lanes
            if lane.unread_from not in (None, lane.loaded_end, lane.earliest)
        },
    )
    due = appended_at(
        client,
        {
            (topic.topic, lane.partition): lane.due_from
            for topic, lane in lanes
            if lane.due_from is not None and lane.earliest <= lane.due_from
        },
    )

    def with_times(topic: TopicStanding, lane: LaneStanding) -> LaneStanding:
        lane = replace(lane, due_at=due.get((topic.topic, lane.partition)))
        return _with_unread(topic, _with_oldest(topic, lane, ledger, not_loaded), unread)

    return [
        replace(topic, lanes=tuple(with_times(topic, lane) for lane in topic.lanes))
        for topic in topics
    ]


Times = Mapping[tuple[str, int], int | None]


def _with_oldest(
    topic: TopicStanding, lane: LaneStanding, ledger: Engine, times: Times
) -> LaneStanding:
    if lane.loaded_end >= lane.log_end:
        return replace(lane, is_complete=True)
    if lane.loaded_end < lane.earliest:  # Kafka has forgotten it: staged, or lost
        for offset in (lane.loaded_end, lane.loaded_end - 1):
            batch = batch_at(ledger, topic.topic_id, lane.partition, offset)
            if batch is not None:
                day = _us(midnight_ms(batch.arrival_date))
                return replace(lane, oldest_at=day, is_bound=True)
        return lane
    place = (topic.topic, lane.partition)
    if place in times and times[place] is None:  # markers of transactions, and no record
        return replace(lane, is_complete=True)
    return replace(lane, oldest_at=times.get(place))


def _with_unread(topic: TopicStanding, lane: LaneStanding, times: Times) -> LaneStanding:
    if lane.unread_from is None:
        return lane
    if lane.unread_from == lane.loaded_end:
        return replace(lane, unread_at=lane.oldest_at)
    if lane.unread_from == lane.earliest:
        return replace(lane, unread_at=lane.earliest_at)
    return replace(lane, unread_at=times.get((topic.topic, lane.partition)))


def _us(ms: int | None) -> int | None:
    return None if ms is None else ms * 1000
