"""Plan: cut the next batch off what Kafka holds, before anything is read.

    ends in the ledger + watermarks + where days begin ──▶ ranges of one arrival date ──▶ ledger

A batch starts where the lane's last batch ends: never at a group's committed offset, never at
what ClickHouse happens to hold. Two planners cannot overlap, because storing a plan compares
and swaps each lane's end.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from assets.pipeline.batch import Batch, Range, batch_id
from assets.pipeline.errors import LogTruncated
from assets.pipeline.topic import Topic, TopicIdentity


@dataclass(frozen=True)
class Watermark:
    """Up to where a run drains: the topic's incarnation and its ends, seen at one moment."""

    identity: TopicIdentity
    highs: dict[int, int]


@dataclass(frozen=True)
class Cut:
    """Ranges of one arrival date."""

    arrival_date: date
    ranges: tuple[Range, ...]


def see_watermark(topic: Topic) -> Watermark:
    """The topic's ends now."""
    identity = topic.identity()
    return Watermark(identity, topic.highs(range(identity.partitions)))


def unplanned_starts(
    topic: Topic, watermark: Watermark, planned_ends: Mapping[int, int]
) -> dict[int, int]:
    """Per partition that has records below the watermark in no batch yet, where they begin.

    Raises LogTruncated when a lane's end lies below what was planned.
    """
    new = [partition for partition in watermark.highs if partition not in planned_ends]
    # The first time, a topic is taken from where it begins now. A partition that is added later
    # is taken from its first offset: should that be gone by then, it is a gap like any other.
    starts = {**(dict.fromkeys(new, 0) if planned_ends else topic.lows(new)), **planned_ends}
    for partition, high in watermark.highs.items():
        if high < starts[partition]:
            raise LogTruncated(
                f"partition {partition} of {topic.name} ends at {high}, but is planned up to "
                f"{starts[partition]}: Kafka has lost records, or this is another cluster"
            )
    return {
        partition: starts[partition]
        for partition, high in watermark.highs.items()
        if starts[partition] < high
    }


def cut_next(
    topic: Topic,
    watermark: Watermark,
    planned_ends: Mapping[int, int],
    max_offsets: int,
    today: date | None = None,
    lanes: Collection[int] | None = None,
) -> Cut | None:
    """The next batch's ranges below the watermark, or None when everything is planned.

    The oldest arrival date that has unplanned records goes first, and each lane is cut where
    that date ends. `max_offsets` is shared out evenly, what a short lane leaves going to others.
    Offsets that retention has taken go before all others, into a batch of their own, so that the
    gap which reading makes of it holds no record back. With `lanes`, all of that is of these alone.
    Raises LogTruncated when a lane's end lies below what was planned.
    """
    unread = unplanned_starts(topic, watermark, planned_ends)
    if lanes is not None:
        unread = {partition: start for partition, start in unread.items() if partition in lanes}
    if not unread:
        return None

    lows = topic.lows(unread)
    gone = {partition: start for partition, start in unread.items() if start < lows[partition]}
    dates = topic.arrival_dates(gone or unread, today or datetime.now(UTC).date())
    oldest = min(dates.values())
    if gone:
        return Cut(
            oldest,
            tuple(
                Range(partition, start, min(lows[partition], watermark.highs[partition]))
                for partition, start in sorted(gone.items())
                if dates[partition] == oldest
            ),
        )
    # The watermark is older than this answer, so no record below it can be of a later day than
    # the answer says.
    next_day = topic.starts_of(
        {partition: oldest + timedelta(days=1) for partition, day in dates.items() if day == oldest}
    )
    # A day that begins before the record itself is one that the broker's clock never reached: the
    # record carries a time of its maker's, and its arrival date was bounded to be a sane one.
    available = {
        partition: (
            min(begins, watermark.highs[partition])
            if begins > unread[partition]
            else watermark.highs[partition]
        )
        - unread[partition]
        for partition, begins in next_day.items()
    }
    shares = share_out(available, max_offsets)
    return Cut(
        oldest,
        tuple(
            Range(partition, unread[partition], unread[partition] + share)
            for partition, share in sorted(shares.items())
            if share
        ),
    )


def share_out(available: Mapping[int, int], budget: int) -> dict[int, int]:
    """Give each lane an even share of the budget, and what short lanes leave to the others."""
    shares: dict[int, int] = {}
    for left, (partition, wanted) in zip(
        range(len(available), 0, -1),
        sorted(available.items(), key=lambda item: (item[1], item[0])),
        strict=True,
    ):
        shares[partition] = min(wanted, -(-budget // left))
        budget -= shares[partition]
    return shares


def make_batch(
    cut: Cut,
    identity: TopicIdentity,
    *,
    topic: str,
    run_id: str,
    code_version: str,
    planned_at: int,
    generation: int = 0,
) -> Batch:
    """The batch for a cut, ready to be stored in the ledger. `planned_at` (µs) is its "now"."""
    return Batch(
        batch_id=batch_id(identity.cluster_id, identity.topic_id, cut.ranges, generation),
        topic=topic,
        cluster_id=identity.cluster_id,
        topic_id=identity.topic_id,
        arrival_date=cut.arrival_date,
        generation=generation,
        code_version=code_version,
        run_id=run_id,
        planned_at=planned_at,
        ranges=cut.ranges,
    )
