"""Compare rows: hold what ClickHouse has of batches against the lake's Parquet, row by row.

    staged file ─▶ hashes ─┐
                           ├─ per partition ─▶ offsets missing, extra, doubled, altered
    table ───────▶ hashes ─┘

The sums of a proof say that something differs, this says what. It reads the whole of the staged
files, and of each arrival date's part of the table, so it is for a person who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client

from assets.pipeline.batch import Batch, Kind, StagedFile
from assets.pipeline.errors import StagedFileDamaged
from assets.pipeline.lake import Lake
from assets.pipeline.prove import read_fingerprints_of
from assets.pipeline.row_hashes import (
    Columns,
    HashedRows,
    column_texts,
    columns_of,
    joined,
    loaded_rows,
    loaded_texts,
    staged_rows,
)
from assets.pipeline.staged_files import check_staged

OFFSETS_NAMED = 10
"""How many offsets of each kind of difference are named; the others are counted."""

_ROWS_A_QUERY = 2_000_000
_ROWS_LOOKED_INTO = 5
_BARE: Columns = {"_partition": pa.int32(), "_offset": pa.int64()}

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Offsets:
    """Some offsets of a partition: how many, and the first few."""

    count: int = 0
    first: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        more = " …" if self.count > len(self.first) else ""
        return f"{self.count:,} ({', '.join(map(str, self.first))}{more})"


@dataclass(frozen=True)
class PartitionDifference:
    """How the rows of one partition of a batch differ from what was staged.

    `missing` are not in the table, `extra` are there and not in the file, `doubled` are there more
    often than in the file, `altered` are there with other columns: those named in `columns`.
    """

    partition: int
    missing: Offsets = field(default_factory=Offsets)
    extra: Offsets = field(default_factory=Offsets)
    doubled: Offsets = field(default_factory=Offsets)
    altered: Offsets = field(default_factory=Offsets)
    columns: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.missing, self.extra, self.doubled, self.altered))

    def __str__(self) -> str:
        told = [
            f"{name} {offsets}"
            for name, offsets in (
                ("missing", self.missing),
                ("extra", self.extra),
                ("doubled", self.doubled),
                ("altered", self.altered),
            )
            if offsets
        ]
        if self.columns:
            told[-1] += f" in {', '.join(self.columns)}"
        return f"partition {self.partition}: " + ", ".join(told)


@dataclass(frozen=True)
class RowComparison:
    """What came of comparing a file of a batch: differences, or why it cannot be compared."""

    batch: Batch
    partitions: tuple[PartitionDifference, ...] = ()
    unreadable: str = ""


@dataclass(frozen=True)
class _Subject:
    """A batch to compare, the file it has of a kind, if any, and the columns of that."""

    batch: Batch
    file: StagedFile | None
    columns: Columns

    @property
    def rows(self) -> int:
        return self.file.rows if self.file else 0


def compare_rows(
    client: Client, database: str, lake: Lake, batches: Iterable[Batch], kind: Kind
) -> Iterator[RowComparison]:
    """Compare the rows of loaded batches, one arrival date after the other.

    A batch without rows of that kind is compared with nothing: what the table has of it is extra.
    """
    subjects = []
    for batch in sorted(batches, key=lambda batch: (batch.arrival_date, batch.planned_at)):
        assert batch.staged is not None
        file = batch.staged.file(kind)
        try:
            if file is not None:
                check_staged(lake, file)
            columns = columns_of(lake, file) if file else _BARE
        except StagedFileDamaged as error:
            yield RowComparison(batch, unreadable=str(error))
            continue
        subjects.append(_Subject(batch, file, columns))
    for group in _groups(subjects):
        found = _loaded(client, database, kind, group)
        for subject in group:
            rows = found.get(subject.batch.batch_id, joined([]))
            try:
                compared = _compared(client, database, lake, kind, subject, rows)
            except StagedFileDamaged as error:  # it was there when it was checked
                compared = RowComparison(subject.batch, unreadable=str(error))
            yield compared


def _compared(
    client: Client, database: str, lake: Lake, kind: Kind, subject: _Subject, rows: HashedRows
) -> RowComparison:
    staged = staged_rows(lake, subject.file) if subject.file else joined([])
    return RowComparison(
        subject.batch,
        tuple(
            _with_columns(client, database, lake, kind, subject, difference)
            for difference in differences_between(staged, rows)
        ),
    )


def differences_between(staged: HashedRows, found: HashedRows) -> list[PartitionDifference]:
    """Per partition, how what was found differs from what was staged; none when nothing does."""
    differences = []
    for partition in np.union1d(staged.partition, found.partition):
        mine, theirs = staged.partition == partition, found.partition == partition
        difference = _partition_difference(
            int(partition),
            (staged.offset[mine], staged.hash[mine]),
            (found.offset[theirs], found.hash[theirs]),
        )
        if difference:
            differences.append(difference)
    return differences


def _partition_difference(
    partition: int,
    staged: tuple[Longs, npt.NDArray[np.uint64]],
    found: tuple[Longs, npt.NDArray[np.uint64]],
) -> PartitionDifference:
    places, first, counts = np.unique(staged[0], return_index=True, return_counts=True)
    there, there_counts = np.unique(found[0], return_counts=True)
    both, at, there_at = np.intersect1d(places, there, return_indices=True)
    is_common = np.isin(found[0], both)
    offsets, hashes = found[0][is_common], found[1][is_common]
    expected = staged[1][first][np.searchsorted(places, offsets)]
    return PartitionDifference(
        partition,
        missing=_offsets(np.setdiff1d(places, there)),
        extra=_offsets(np.setdiff1d(there, places)),
        doubled=_offsets(both[there_counts[there_at] > counts[at]]),
        altered=_offsets(np.unique(offsets[hashes != expected])),
    )


def _offsets(found: Longs) -> Offsets:
    return Offsets(len(found), tuple(found[:OFFSETS_NAMED].tolist()))


def _groups(subjects: Sequence[_Subject]) -> Iterator[list[_Subject]]:
    """Subjects of one arrival date and the same columns, so many rows at a time."""
    group: list[_Subject] = []
    for subject in subjects:
        if group and (
            subject.batch.arrival_date != group[0].batch.arrival_date
            or subject.columns != group[0].columns
            or sum(each.rows for each in group) + subject.rows > _ROWS_A_QUERY
        ):
            yield group
            group = []
        group.append(subject)
    if group:
        yield group


def _loaded(
    client: Client, database: str, kind: Kind, group: Sequence[_Subject]
) -> dict[str, HashedRows]:
    """The table's rows of each batch, wherever they stand, looked for where they belong first."""
    ids = [subject.batch.batch_id for subject in group]
    day, columns = group[0].batch.arrival_date, group[0].columns
    found = loaded_rows(client, database, kind.value, columns, ids, day)
    in_all = {
        batch_id: sum(print_.rows for print_ in prints)
        for batch_id, prints in read_fingerprints_of(client, database, kind.value, ids).items()
    }
    strayed = [id_ for id_, rows in in_all.items() if rows != len(found.get(id_, joined([])))]
    if strayed:
        found |= loaded_rows(client, database, kind.value, columns, strayed)
    return found


def _with_columns(
    client: Client,
    database: str,
    lake: Lake,
    kind: Kind,
    subject: _Subject,
    difference: PartitionDifference,
) -> PartitionDifference:
    """The difference with the columns in which the first of the altered rows differ."""
    if not difference.altered or subject.file is None:
        return difference
    place = (difference.partition, difference.altered.first[:_ROWS_LOOKED_INTO])
    columns = subject.columns
    found = loaded_texts(
        client, database, kind.value, columns, subject.batch.batch_id, *place
    ).to_pylist()
    with lake.open_file(subject.file.path) as source:
        rows = pq.read_table(
            source,
            filters=[("_partition", "=", place[0]), ("_offset", "in", place[1])],
        )
    texts = zip(rows["_offset"].to_pylist(), column_texts(rows).to_pylist(), strict=True)
    staged: dict[int, dict[str, bytes | None]] = dict(texts)
    differ = {
        name for row in found for name in columns if row[name] != staged[int(row["_offset"])][name]
    }
    return replace(difference, columns=tuple(name for name in columns if name in differ))
