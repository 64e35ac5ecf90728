"""Staging without Kafka: batches and chunks made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

import pyarrow as pa
from confluent_kafka import Message

from assets.pipeline.batch import Batch, KeyFile, Range, Staged, batch_id
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import RAW
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.lake import Lake
from assets.pipeline.read import Chunk
from assets.pipeline.stage import stage

DAY = date(2026, 3, 5)
APPENDED_AT = 1_772_700_000_000
"""When the broker took the records, in ms since 1970: on DAY."""


@dataclass(frozen=True)
class Record:
    """A record as it stands in a partition."""

    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = b"token:person"

    def headers(self) -> list[tuple[str, bytes | None]]:
        """What a message says when it is asked."""
        return [("tidemark-record", b"2")]


def lane(values: Iterable[bytes | None], partition: int = 0, start: int = 0) -> list[Record]:
    """Records of one partition, at offsets that follow each other."""
    return [Record(partition, start + number, value) for number, value in enumerate(values)]


def chunks_of(records: Sequence[Record], size: int = 1_000) -> Iterator[Chunk]:
    """Records as a read gives them, so many at a time."""
    for at in range(0, len(records), size):
        some = records[at : at + size]
        table: dict[str, list[Any]] = {
            "partition": [record.partition for record in some],
            "offset": [record.offset for record in some],
            "appended_at": [APPENDED_AT for _ in some],
            "key": [record.key for record in some],
            "value": [record.value for record in some],
        }
        yield Chunk(pa.RecordBatch.from_pydict(table, schema=RAW), cast(list[Message], some))


def batch_of(*ranges: Range, day: date = DAY, generation: int = 0) -> Batch:
    """A planned batch of these ranges."""
    return Batch(
        batch_id=batch_id("cluster", "topic-id", ranges, generation),
        topic="events",
        cluster_id="cluster",
        topic_id="topic-id",
        arrival_date=day,
        generation=generation,
        code_version="1",
        run_id="run",
        planned_at=1,
        ranges=ranges,
    )


def batch_around(records: Sequence[Record], day: date = DAY) -> Batch:
    """The batch whose ranges just hold these records."""
    offsets: dict[int, list[int]] = {}
    for record in records:
        offsets.setdefault(record.partition, []).append(record.offset)
    ranges = (Range(part, min(found), max(found) + 1) for part, found in sorted(offsets.items()))
    return batch_of(*ranges, day=day)


def staged_into(
    lake: Lake,
    batch: Batch,
    records: Sequence[Record],
    known: Sequence[KeyFile] = (),
    size: int = 1_000,
) -> tuple[Staged, KeyFile | None]:
    """Stage records, compared with the keys of files that are known."""
    seen = SeenKeys(lake.filesystem, [lake.full_path(file.path) for file in known], batch.batch_id)
    return stage(batch, chunks_of(records, size), lake, seen, StageClock())
