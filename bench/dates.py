"""Dates: a lake and a ledger with arrival dates of the past, without going through them.

    records ─stage─▶ the first batch, as a worker stages it
                        └─ read again, with places, date and uuids of its own ─▶ each other one

The ledger has them as loaded batches of one topic; ClickHouse has nothing of them, as after its
tables were lost. `python -m bench.dates` reads its settings from the environment and prints what it
made as one line of JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.pipeline.batch import Batch, Kind, Range, Staged, State, batch_id
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import EVENTS, RAW
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.fingerprint import FingerprintSum
from assets.pipeline.lake import Lake
from assets.pipeline.read import CHUNK_RECORDS, Chunk
from assets.pipeline.stage import stage
from assets.pipeline.staged_files import staged_files, staged_path
from bench.errors import run_command
from bench.fill import make_records
from orchestration.ledger.batches import (
    record_plan,
    register_staged,
    set_dead_letters_loaded,
    set_state,
)
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.leases import held_lease
from orchestration.settings import Settings

_PARTITIONS = 8
_NAME = "bench"  # of the cluster, the topic's id, the run


@dataclass(frozen=True)
class Dates:
    """What was made: the dates, and of all of them together batches, rows and bytes staged."""

    first: str
    dates: int
    batches: int
    rows: int
    bytes: int


def make_dates(settings: Settings, dates: int, events: int) -> Dates:
    """Make so many dates that end yesterday, of so many events each."""
    lake, ledger = Lake(settings.lake), open_ledger(settings.ledger)
    a_date = -(-events // settings.batch_max_records)
    rows = events // a_date
    first = datetime.now(UTC).date() - timedelta(days=dates)
    template: Staged | None = None
    written = 0
    with held_lease(ledger, f"topic/{settings.topic}", settings.lease_seconds) as lease:
        for number in range(dates * a_date):
            batch = _batch(settings.topic, number, rows, first + timedelta(days=number // a_date))
            record_plan(ledger, lease, batch)
            if template is None:
                seen = SeenKeys(lake.filesystem, [], batch.batch_id)
                staged, _ = stage(batch, _chunks(rows), lake, seen, StageClock())
                template = staged
            else:
                staged = _copied(lake, template, batch, number)
            register_staged(ledger, lease, batch.batch_id, staged, None, _NAME)
            for state in (State.LOADING, State.LOADED, State.COMMITTED):
                set_state(ledger, lease, batch.batch_id, state)
            set_dead_letters_loaded(ledger, lease, batch.batch_id)
            written += sum(file.bytes for file in staged.files)
    return Dates(first.isoformat(), dates, dates * a_date, dates * a_date * rows, written)


def _batch(topic: str, number: int, rows: int, day: date) -> Batch:
    counts = np.bincount(np.arange(rows) % _PARTITIONS).tolist()
    ranges = tuple(Range(p, number * n, (number + 1) * n) for p, n in enumerate(counts))
    return Batch(
        batch_id=batch_id(_NAME, _NAME, ranges, 0),
        topic=topic,
        cluster_id=_NAME,
        topic_id=_NAME,
        arrival_date=day,
        generation=0,
        code_version=_NAME,
        run_id=_NAME,
        planned_at=now_us(),
        ranges=ranges,
    )


def _chunks(rows: int) -> Iterator[Chunk]:
    """The records of the first batch, as a read of Kafka gives them."""
    now = time.time_ns() // 1_000_000
    keys: list[bytes] = []
    values: list[bytes] = []
    begun = 0
    for number, (key, value, _) in enumerate(make_records(rows), 1):
        keys.append(key)
        values.append(value)
        if len(keys) == CHUNK_RECORDS or number == rows:
            numbers = np.arange(begun, number)
            columns = [
                pa.array((numbers % _PARTITIONS).astype(np.int32)),
                pa.array(numbers // _PARTITIONS),
                pa.array(np.full(len(numbers), now)),
                pa.array(keys, pa.binary()),
                pa.array(values, pa.binary()),
            ]
            yield Chunk(pa.record_batch(columns, schema=RAW), ())
            keys, values, begun = [], [], number


def _copied(lake: Lake, template: Staged, batch: Batch, number: int) -> Staged:
    """The same events as another batch of another date: at other places, with other uuids."""
    file = template.file(Kind.EVENTS)
    assert file is not None
    sums = FingerprintSum()
    starts = np.array([range_.start for range_ in batch.ranges])

    def path_of(kind: Kind) -> str:
        return staged_path(kind, batch, 1)

    with (
        staged_files(path_of, lake, StageClock(), lambda: None) as files,
        pq.ParquetFile(lake.full_path(file.path)) as staged,
    ):
        for group in range(staged.num_row_groups):
            table = staged.read_row_group(group)
            partitions = table.column("_partition").to_numpy()
            offsets = table.column("_offset").to_numpy() + starts[partitions]
            rows = len(table)
            changed = {
                "uuid": _other_uuids(table.column("uuid"), number),
                "arrival_date": pa.repeat(pa.scalar(batch.arrival_date, pa.date32()), rows),
                "_offset": pa.array(offsets),
                "_batch_id": pa.repeat(pa.scalar(batch.batch_id), rows),
            }
            columns = [changed.get(name, table.column(name)) for name in EVENTS.names]
            files.write(Kind.EVENTS, pa.table(columns, schema=EVENTS))
            sums.add(partitions, offsets)
        files.finish()
    return replace(template, files=files.registered(), fingerprints={Kind.EVENTS: sums.result()})


def _other_uuids(column: pa.ChunkedArray, number: int) -> pa.ExtensionArray:
    storage = column.combine_chunks().storage
    words = np.frombuffer(storage.buffers()[1], np.uint64)[: 2 * len(storage)] ^ np.uint64(number)
    fixed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(storage), [None, pa.py_buffer(words)]
    )
    return pa.ExtensionArray.from_storage(pa.uuid(), fixed)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--dates", default=30, show_default=True, help="How many dates, up to yesterday.")
@click.option("--events", default=50_000, show_default=True, help="Events of each date.")
def main(dates: int, events: int) -> None:
    print(json.dumps(asdict(make_dates(Settings(), dates, events))))


if __name__ == "__main__":
    run_command(main, "bench.dates")
