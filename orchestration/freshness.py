"""Freshness: how long the oldest record that is to be loaded has waited, and how long it may.

It may wait for the next tick of its topic's cadence, however far that is (a cron expression may
leave out a weekend), and then for TIDEMARK_ALARM_OLDEST_SECONDS. The check `freshness` and the
alarm `oldest/…` go by the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestration.settings import Settings
from orchestration.standing import TopicStanding
from orchestration.times import utc


@dataclass(frozen=True)
class Oldest:
    """The oldest record of a topic that is not loaded. Times are µs; `may_wait` is None for any."""

    topic: str
    partition: int
    at: int
    waited: int
    may_wait: int | None

    @property
    def is_late(self) -> bool:
        """Whether it has waited for longer than it may."""
        return self.may_wait is not None and self.waited > self.may_wait


def oldest_of(
    settings: Settings, topic: TopicStanding, *, past_waiting: bool = False
) -> Oldest | None:
    """The oldest record, None when there is none, or none whose time is known.

    Of one that Kafka has forgotten only the day is known: its batch is told of instead. With
    `past_waiting`, batches that wait for a person are passed over, for what comes after them.
    """
    known: dict[int, int] = {}
    for lane in topic.lanes:
        if past_waiting and lane.waits_for_a_person:
            oldest_at = lane.due_at
        else:
            oldest_at = None if lane.is_bound else lane.oldest_at
        if oldest_at is not None:
            known[lane.partition] = oldest_at
    if not known:
        return None
    partition = min(known, key=lambda each: known[each])
    at = known[partition]
    may_wait = None
    if settings.alarm_oldest_seconds:
        appended = utc(at)
        tick = settings.cadence_of(topic.topic).next_tick(appended)
        may_wait = int(((tick - appended).total_seconds() + settings.alarm_oldest_seconds) * 1e6)
    return Oldest(topic.topic, partition, at, max(0, topic.seen_at - at), may_wait)
