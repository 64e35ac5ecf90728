"""Records that are still only in Kafka: those above what is staged, read within bounds.

    what no batch has staged yet ──too much?──▶ from a bit before the time that the id carries
                                      └── no ──▶ all of it

When nothing is found anywhere, records of that time which are staged already are read as well: a
record that Kafka has and the lake lacks is what an audit is there to find.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Engine

from assets.pipeline.batch import Range
from assets.pipeline.errors import BatchError, KafkaAway, TopicMissing
from assets.pipeline.plan import see_watermark, share_out
from assets.pipeline.read import read_ranges
from assets.pipeline.topic import LOOK_PATIENCE_S, Topic, midnight_ms, topics_of
from orchestration.explain.in_lake import mentions
from orchestration.explain.record import Place, Record, Search, Verdict, with_head
from orchestration.explain.wanted import Wanted
from orchestration.ledger.batches import staged_ends
from orchestration.settings import Settings

MOST_RECORDS_READ = 1_000_000
MOST_SECONDS = 20.0
"""What one look-up reads of a topic at most."""

BEFORE_MS = 60_000
AFTER_MS = 600_000
"""How long before the time in the id reading begins, as clocks differ; and how long after it
reading ends of what is staged already."""

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Found:
    """A record of Kafka, and the incarnation of the topic that it is of."""

    record: Record
    topic_id: str


def search_kafka(
    settings: Settings, ledger: Engine, wanted: Wanted, search: Search, *, staged_too: bool = False
) -> list[Found]:
    """The wanted records that no batch has staged; with `staged_too`, those that one has."""
    found: list[Found] = []
    try:
        topics = topics_of(settings.kafka_client, settings.topics_by_urgency, LOOK_PATIENCE_S)
        for topic in topics.values():
            try:
                found += _search_topic(settings, ledger, topic, wanted, search, staged_too)
            except TopicMissing:
                search.looked_at.append(f"Kafka, topic {topic.name}: it does not exist")
    except KafkaAway as error:
        search.away["Kafka"] = str(error)
        search.looked_at.append(f"Kafka: not asked, {error}")
    except BatchError as error:  # retention took records while they were read
        search.bounded.append(f"Kafka could not be read to its end: {error}")
    return found


def _search_topic(
    settings: Settings,
    ledger: Engine,
    topic: Topic,
    wanted: Wanted,
    search: Search,
    staged_too: bool,
) -> list[Found]:
    watermark = see_watermark(topic)
    identity = watermark.identity
    staged = staged_ends(ledger, identity.cluster_id, identity.topic_id)
    lows = topic.lows(watermark.highs)
    unstaged = {
        partition: min(max(staged.get(partition, 0), lows[partition]), high)
        for partition, high in watermark.highs.items()
    }
    if staged_too:
        begin, end = _time_of(wanted)
        starts = _first_after(topic, begin, lows, unstaged)
        ends = _first_after(topic, end, starts, unstaged)
    else:
        starts, ends = unstaged, watermark.highs
        if _length(starts, ends) > MOST_RECORDS_READ and wanted.made_at_ms is not None:
            starts = _first_after(topic, wanted.made_at_ms - BEFORE_MS, starts, ends)
            since = np.datetime64(wanted.made_at_ms - BEFORE_MS, "ms")
            search.bounded.append(f"topic {topic.name} was read from {since} UTC on only")
    shares = share_out({p: ends[p] - starts[p] for p in starts}, MOST_RECORDS_READ)
    ranges = [Range(p, starts[p], starts[p] + share) for p, share in shares.items() if share]
    matches, read = _read(settings, topic.name, ranges, wanted)
    planned = sum(map(len, ranges))
    if read < planned or planned < _length(starts, ends):
        search.bounded.append(
            f"of topic {topic.name} {min(read, planned):,} of {_length(starts, ends):,} records "
            f"were read (at most {MOST_RECORDS_READ:,}, in {MOST_SECONDS:.0f} s)"
        )
    which = "of that time that are staged already" if staged_too else "not staged yet"
    search.looked_at.append(
        f"Kafka, topic {topic.name}, {_length(starts, ends):,} records {which}: "
        f"{len(matches):,} found"
    )
    return [Found(record, identity.topic_id) for record in matches]


def _time_of(wanted: Wanted) -> tuple[int, int]:
    """From when and until when records are looked at that are staged already, in ms since 1970."""
    if wanted.day is not None:
        begin = midnight_ms(wanted.day)
        return begin, begin + DAY_MS  # the calendar may have no day after
    assert wanted.made_at_ms is not None
    return wanted.made_at_ms - BEFORE_MS, wanted.made_at_ms + AFTER_MS


def _length(starts: Mapping[int, int], ends: Mapping[int, int]) -> int:
    return sum(ends[partition] - start for partition, start in starts.items())


def _first_after(
    topic: Topic, ms: int, lows: Mapping[int, int], ends: Mapping[int, int]
) -> dict[int, int]:
    """Per partition, the first offset appended at that time or later, within the bounds."""
    begun = topic.starts_at(dict.fromkeys(lows, max(0, ms)))
    return {
        partition: ends[partition]
        if begun[partition] == -1
        else min(max(low, begun[partition]), ends[partition])
        for partition, low in lows.items()
    }


def _read(
    settings: Settings, topic: str, ranges: list[Range], wanted: Wanted
) -> tuple[list[Record], int]:
    """The wanted records of the ranges, and how many offsets were read until time was over."""
    found: list[Record] = []
    read = 0
    if not ranges:
        return found, read
    end = time.monotonic() + MOST_SECONDS
    for chunk in read_ranges(settings.kafka_client, topic, ranges):
        values = chunk.records.column("value")
        for row in np.flatnonzero(mentions(values, wanted)).tolist():
            head = wanted.head_of(values[row].as_py())
            if head is not None:
                place = Place(
                    topic,
                    chunk.records.column("partition")[row].as_py(),
                    chunk.records.column("offset")[row].as_py(),
                )
                appended_at = chunk.records.column("appended_at")[row].as_py() * 1000
                found.append(with_head(Record(place, Verdict.WAITING, appended_at), head))
        read += len(chunk.records)
        if time.monotonic() > end:
            return found, read
    return found, sum(map(len, ranges))
