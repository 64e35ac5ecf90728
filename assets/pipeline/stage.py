"""Stage: the chunks of a batch become its immutable files in the lake.

    chunks ─judge─▶ verdicts ─┬─ ok ───────▶ row groups ─duplicates?─enrich─▶ events/….parquet
                              ├─ rejected ─▶ dead_letters/….parquet         ├▶ duplicates/….parquet
                              └─ tombstone, absent: counted                 └▶ keys/….arrow

Memory holds two row groups, whatever the size of the batch: one is written while the next is made.
Records read again give the same rows (in the order in which Kafka's partitions happened to answer),
so staging again after a crash before registration is harmless; once registered, the file is the
truth.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.pipeline.batch import Balance, Batch, KeyFile, Kind, Staged, StagedFile
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import (
    DEAD_LETTER_BYTES,
    DEAD_LETTERS,
    DUPLICATES,
    EVENTS,
    MILLISECONDS,
)
from assets.pipeline.duplicates import Firsts, Found, key_columns
from assets.pipeline.enrich import enrich
from assets.pipeline.errors import BatchError
from assets.pipeline.failpoints import failpoint
from assets.pipeline.fingerprint import FingerprintSum
from assets.pipeline.key_files import write_key_file
from assets.pipeline.lake import Lake, named_errors
from assets.pipeline.read import Chunk
from assets.pipeline.reasons import KEPT_WHOLE
from assets.pipeline.staged_files import StagedFiles, staged_files, staged_path
from assets.pipeline.validate import Judged, Verdict, judge

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 128 << 20
"""A row group is written when it has so many rows, or so many bytes of record values."""


def stage(
    batch: Batch,
    chunks: Iterable[Chunk],
    lake: Lake,
    seen: Firsts,
    clock: StageClock,
    attempt: int = 1,
    may_publish: Callable[[], None] = lambda: None,
    judge_chunk: Callable[[Chunk], Judged] = lambda chunk: judge(chunk.records.column("value")),
    keep_rejected: bool = True,
    path_of: Callable[[str, str], str] | None = None,
    share: int = 1,
) -> tuple[Staged, KeyFile | None]:
    """Stage a batch; gives what to register. Chunks hold exactly the records of its ranges.

    Without `keep_rejected`, those that are rejected are counted and not written: they are dead
    letters already. `attempt` is the number of this try at staging it, from 1; it names the files,
    unless `path_of` gives them for a kind and a suffix. `may_publish` is asked before the files
    appear, and raises when another worker has taken over. With `share`, it is one of so many that
    share the bytes of row groups. Raises BatchError when the records and the ranges do not balance.
    """
    name = path_of or (lambda kind, suffix: staged_path(kind, batch, attempt, suffix))
    with staged_files(lambda kind: name(kind, "parquet"), lake, clock, may_publish) as files:
        writer = _BatchWriter(batch, files, seen, clock, keep_rejected, ROW_GROUP_BYTES // share)
        for chunk in clock.timed("read", chunks):
            with clock.stage("validate"):
                judged = judge_chunk(chunk)
            writer.add(chunk, judged)
        writer.finish()
        failpoint("while-staging")
    key_file = None
    if len(seen.added()):
        with clock.stage("stage"):
            path = name("keys", "arrow")
            with named_errors("writing", path):
                rows = write_key_file(lake.filesystem, lake.full_path(path), seen.added())
            key_file = KeyFile(path, batch.arrival_date, rows)
    return writer.staged(files.registered()), key_file


class _BatchWriter:
    """Collects judged chunks into row groups and writes them; knows the balance at the end."""

    def __init__(
        self,
        batch: Batch,
        files: StagedFiles,
        seen: Firsts,
        clock: StageClock,
        keep_rejected: bool,
        row_group_bytes: int,
    ) -> None:
        self._batch = batch
        self._keep_rejected = keep_rejected
        self._row_group_bytes = row_group_bytes
        self._files = files
        self._seen = seen
        self._clock = clock
        self._fingerprints = {Kind.EVENTS: FingerprintSum(), Kind.DEAD_LETTERS: FingerprintSum()}
        self._counts = {
            range_.partition: np.zeros(len(Verdict), np.int64) for range_ in batch.ranges
        }
        self._reasons: Counter[str] = Counter()
        self._bytes_read = 0
        self._waiting: list[tuple[pa.RecordBatch, Judged]] = []
        self._waiting_rows = self._waiting_bytes = 0

    def add(self, chunk: Chunk, judged: Judged) -> None:
        """Take a chunk in; writes a row group when enough rows have come together."""
        self._count(chunk.records.column("partition").to_numpy(), judged.verdicts)
        value_bytes = pc.sum(pc.binary_length(chunk.records.column("value"))).as_py() or 0
        self._bytes_read += value_bytes
        if judged.rejections and self._keep_rejected:
            self._write_dead_letters(chunk, judged)
        if len(judged.rows):
            places = chunk.records.select(["partition", "offset", "appended_at"])
            if len(judged.rows) < len(places):
                places = places.take(pa.array(judged.rows))
            self._waiting.append((places, judged))
            self._waiting_rows += len(judged.rows)
            self._waiting_bytes += value_bytes
        if self._waiting_rows >= ROW_GROUP_ROWS or self._waiting_bytes >= self._row_group_bytes:
            self._write_events()

    def finish(self) -> None:
        """Write what is left."""
        if self._waiting:
            self._write_events()

    def staged(self, files: tuple[StagedFile, ...]) -> Staged:
        """What came of the batch, once all files are closed."""
        balances = {}
        for range_, readable in zip(self._batch.ranges, self._batch.readable, strict=True):
            counts = self._counts[range_.partition]
            absent = len(readable) - int(counts.sum())
            if absent < 0:
                raise BatchError(
                    f"{range_} gave {int(counts.sum()):,} records, more than it has offsets"
                )
            balances[range_.partition] = Balance(
                ok=int(counts[Verdict.OK]),
                rejected=int(counts[Verdict.REJECTED]),
                duplicate=int(counts[Verdict.DUPLICATE]),
                tombstone=int(counts[Verdict.TOMBSTONE]),
                absent=absent,
                lost=len(range_) - len(readable),
            )
        return Staged(
            files=files,
            balances=balances,
            fingerprints={kind: sums.result() for kind, sums in self._fingerprints.items()},
            bytes_read=self._bytes_read,
            reasons=dict(self._reasons),
        )

    def _count(self, partitions: npt.NDArray[np.int32], verdicts: npt.NDArray[np.uint8]) -> None:
        for partition in np.unique(partitions):
            self._counts[int(partition)] += np.bincount(
                verdicts[partitions == partition], minlength=len(Verdict)
            )

    def _write_events(self) -> None:
        with self._clock.stage("validate"):
            places = pa.Table.from_batches([places for places, _ in self._waiting])
            columns = pa.concat_tables([judged.columns for _, judged in self._waiting])
            uuids = np.concatenate([judged.uuids for _, judged in self._waiting])
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0

        with self._clock.stage("deduplicate"):
            partition = places.column("partition").to_numpy()
            offset = places.column("offset").to_numpy()
            project_id = columns.column("project_id").to_numpy()
            found = self._seen.mark(*key_columns(uuids, project_id), partition, offset)
            if len(found.rows):
                self._write_duplicates(found, columns, places, uuids)
                fresh = ~found.mask(len(columns))
                keep = pa.array(fresh)
                columns, places, uuids = columns.filter(keep), places.filter(keep), uuids[fresh]
        if not len(columns):
            return
        with self._clock.stage("enrich"):
            events = _as_events(enrich(columns), places, uuids, self._batch)
        with self._clock.stage("stage"):
            self._fingerprints[Kind.EVENTS].add(
                places.column("partition").to_numpy(), places.column("offset").to_numpy()
            )
        self._files.write(Kind.EVENTS, events)

    def _write_duplicates(
        self,
        found: Found,
        columns: pa.Table,
        places: pa.Table,
        uuids: npt.NDArray[np.uint8],
    ) -> None:
        rows = found.rows
        where = pa.array(rows)
        partition = places.column("partition").to_numpy()
        for of_partition, count in zip(
            *np.unique(partition[rows], return_counts=True), strict=True
        ):
            counts = self._counts[int(of_partition)]
            counts[Verdict.OK] -= count
            counts[Verdict.DUPLICATE] += count
        table = pa.table(
            [
                columns.column("project_id").take(where).cast(pa.uint32()),
                _uuid_array(uuids[rows]),
                columns.column("request_id").take(where).fill_null(""),
                places.column("appended_at").take(where).cast(MILLISECONDS),
                _repeated(self._batch.topic, len(rows)),
                places.column("partition").take(where),
                places.column("offset").take(where),
                found.batch_id,
                pa.array(found.partition),
                pa.array(found.offset),
            ],
            schema=DUPLICATES,
        )
        self._files.write(Kind.DUPLICATES, table)

    def _write_dead_letters(self, chunk: Chunk, judged: Judged) -> None:
        rows = np.array(sorted(judged.rejections))
        places = chunk.records.take(pa.array(rows))
        self._fingerprints[Kind.DEAD_LETTERS].add(
            places.column("partition").to_numpy(), places.column("offset").to_numpy()
        )
        rejections = [judged.rejections[int(row)] for row in rows]
        self._reasons.update(rejection.reason.value for rejection in rejections)
        values = [value.as_py() for value in places.column("value")]
        batch = self._batch
        table = pa.table(
            [
                pa.array([rejection.reason.value for rejection in rejections]),
                pa.array([rejection.detail for rejection in rejections]),
                _repeated("validate", len(rows)),
                places.column("key"),
                pa.array(
                    [
                        value if rejection.reason in KEPT_WHOLE else value[:DEAD_LETTER_BYTES]
                        for value, rejection in zip(values, rejections, strict=True)
                    ],
                    pa.binary(),
                ),
                pa.array([len(value) for value in values], pa.int64()),
                pa.array([hashlib.sha256(value).hexdigest() for value in values]),
                pa.array([chunk.headers(int(row)) for row in rows]),
                _repeated(batch.code_version, len(rows)),
                pa.repeat(pa.scalar(batch.arrival_date, pa.date32()), len(rows)),
                places.column("appended_at").cast(DEAD_LETTERS.field("_appended_at").type),
                _repeated(batch.topic, len(rows)),
                _repeated(batch.topic_id, len(rows)),
                places.column("partition"),
                places.column("offset"),
                _repeated(batch.batch_id, len(rows)),
                pa.repeat(pa.scalar(batch.generation, pa.uint32()), len(rows)),
            ],
            schema=DEAD_LETTERS,
        )
        self._files.write(Kind.DEAD_LETTERS, table)


def _as_events(
    enriched: pa.Table, places: pa.Table, uuids: npt.NDArray[np.uint8], batch: Batch
) -> pa.Table:
    """Enriched rows in the columns of EVENTS."""
    rows = len(enriched)
    given = {
        "uuid": _uuid_array(uuids),
        "arrival_date": pa.repeat(pa.scalar(batch.arrival_date, pa.date32()), rows),
        "_appended_at": places.column("appended_at"),
        "_topic": _repeated(batch.topic, rows),
        "_partition": places.column("partition"),
        "_offset": places.column("offset"),
        "_batch_id": _repeated(batch.batch_id, rows),
        "_generation": pa.repeat(pa.scalar(batch.generation, pa.uint32()), rows),
    }
    columns = []
    for field in EVENTS:
        column = given.get(field.name)
        if column is None:
            column = enriched.column(field.name)
            if not field.nullable and column.null_count:
                column = column.fill_null("" if field.type == pa.string() else 0)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.table(columns, schema=EVENTS)


def _uuid_array(uuids: npt.NDArray[np.uint8]) -> pa.ExtensionArray:
    storage = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(uuids), [None, pa.py_buffer(np.ascontiguousarray(uuids))]
    )
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _repeated(text: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), rows)
