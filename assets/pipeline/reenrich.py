"""Re-enrich: the staged events of a batch made again with today's code, from what they hold.

    staged file ─row group─┬─ inputs ─parse, enrich─▶ MADE columns ─┬─▶ row group of the new file
                           └─ every other column, as it is ─────────┘

Columns that a file of older code lacks are empty until enrichment fills them; those that EVENTS has
no more are left out. A row whose properties today's code cannot parse keeps what it had.

Invariants: no row comes, goes or moves, so the batch's balance and fingerprints stay. Memory holds
a row group and its successor, whatever the size of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.pipeline.batch import Kind, StagedFile
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import EVENTS, HEAD, MADE, PROMOTED
from assets.pipeline.enrich import enrich
from assets.pipeline.errors import BatchError, StagedFileDamaged
from assets.pipeline.lake import Lake
from assets.pipeline.parse import promoted_again
from assets.pipeline.staged_files import check_staged, staged_files

_INPUTS = [each for each in HEAD if each.name not in ("v", "uuid")]
"""Of a record's head: what a staged row keeps, and enrichment may use. Text not sent is empty."""


EXAMPLES = 3
"""Rows that are shown of each column that would change."""

_SHOWN = 80  # characters of a value


@dataclass(frozen=True)
class Example:
    """What a column holds of an event, and what it would hold."""

    uuid: str
    before: str
    after: str


@dataclass
class ColumnChange:
    """In how many rows a column would change, and the first few of them."""

    rows: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class Changes:
    """What would change in staged files: columns, and those that came or went as such."""

    rows: int = 0
    columns: dict[str, ColumnChange] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.columns or self.added or self.removed)


def changes_text(changes: Changes) -> list[str]:
    """What would change, a line a column, with a few of its events."""
    lines = [f"column {name} would be new" for name in sorted(changes.added)]
    lines += [f"column {name} would be left out" for name in sorted(changes.removed)]
    for name, column in changes.columns.items():
        lines.append(f"column {name}: {column.rows:,} of {changes.rows:,} rows would change")
        lines += [
            f"  {example.uuid}: {_short(example.before)} ─▶ {_short(example.after)}"
            for example in column.examples
        ]
    return lines or [f"none of {changes.rows:,} rows would change"]


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 2] + " …")


def row_groups(lake: Lake, file: StagedFile) -> Iterator[pa.Table]:
    """The rows of a staged file that was checked, a row group at a time."""
    try:
        with lake.open_file(file.path) as source:
            parquet = pq.ParquetFile(source)
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number)
                # Else the allocator keeps what the groups before have left.
                pa.default_memory_pool().release_unused()
    except pa.ArrowException as error:
        raise StagedFileDamaged(f"{file.path} in the lake {lake.uri}: {error}") from error


def in_todays_form(rows: pa.Table) -> pa.Table:
    """Rows of a staged file of any age in the columns of EVENTS."""
    columns = []
    for wanted in EVENTS:
        if wanted.name not in rows.column_names:
            columns.append(_empty(wanted, len(rows)))
            continue
        column = rows.column(wanted.name)
        try:
            column = column if column.type == wanted.type else column.cast(wanted.type)
        except pa.ArrowException as error:
            raise BatchError(
                f"column {wanted.name} of a staged file is {column.type}, and cannot be made "
                f"{wanted.type}: {error}"
            ) from error
        columns.append(column)
    return pa.table(columns, schema=EVENTS)


def enriched_again(rows: pa.Table) -> pa.Table:
    """The same rows, in the form of EVENTS, with MADE as today's code makes it."""
    promoted, read = promoted_again(rows.column("properties").combine_chunks())
    inputs = [rows.column(each.name).cast(each.type) for each in _INPUTS]
    parsed = pa.table(
        [*inputs, rows.column("properties"), *promoted.columns],
        names=[*(each.name for each in _INPUTS), "properties", *PROMOTED],
    )
    enriched = enrich(parsed)
    for name in MADE:
        made = enriched.column(name)
        if not read.all():
            made = pc.if_else(pa.array(read), made, rows.column(name))
        at = EVENTS.get_field_index(name)
        rows = rows.set_column(at, EVENTS.field(at), made)
    return rows


def differing(before: pa.Table, after: pa.Table) -> dict[str, pa.BooleanArray]:
    """The columns in which rows differ, and which rows; both in the form of EVENTS."""
    found = {}
    for name in MADE:
        one, other = before.column(name), after.column(name)
        if not one.equals(other):
            found[name] = pc.not_equal(one, other).combine_chunks()
    return found


def comes_out_the_same(lake: Lake, file: StagedFile) -> bool:
    """Whether today's code makes of a file's rows what they are; stops where it does not."""
    for rows in row_groups(lake, file):
        if rows.schema.names != EVENTS.names or rows.schema.types != EVENTS.types:
            return False
        if differing(rows, enriched_again(rows)):
            return False
    return True


def reenriched(
    lake: Lake,
    file: StagedFile,
    path: str,
    generation: int,
    may_publish: Callable[[], None],
) -> StagedFile | None:
    """Write a staged file again, at `path`; None, and no file, where it comes out the same.

    `may_publish` is asked before it appears, and raises when another worker has taken over.
    Raises StagedFileDamaged when the file is not what was registered.
    """
    check_staged(lake, file)
    if comes_out_the_same(lake, file):
        return None
    with staged_files(lambda kind: path, lake, StageClock(), may_publish) as files:
        for rows in row_groups(lake, file):
            made = enriched_again(in_todays_form(rows))
            files.write(Kind.EVENTS, _of_generation(made, generation))
    (new,) = files.registered()
    if new.rows != file.rows:
        raise StagedFileDamaged(f"{file.path} has {new.rows:,} rows, registered are {file.rows:,}")
    return new


def changes_of(lake: Lake, file: StagedFile, found: Changes) -> None:
    """Add what today's code would make otherwise in a staged file; nothing is written.

    Raises StagedFileDamaged when the file is not what was registered.
    """
    check_staged(lake, file)
    for rows in row_groups(lake, file):
        found.rows += len(rows)
        there = set(rows.column_names)
        found.removed |= there - set(EVENTS.names)
        found.added |= set(EVENTS.names) - there
        before = in_todays_form(rows)
        after = enriched_again(before)
        for name, mask in differing(before, after).items():
            column = found.columns.setdefault(name, ColumnChange())
            where = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
            column.rows += len(where)
            wanted = where[: max(EXAMPLES - len(column.examples), 0)]
            chosen = pa.array(wanted)
            column.examples += [
                Example(str(uuid), str(one), str(other))
                for uuid, one, other in zip(
                    before.column("uuid").take(chosen).to_pylist(),
                    before.column(name).take(chosen).to_pylist(),
                    after.column(name).take(chosen).to_pylist(),
                    strict=True,
                )
            ]


def _of_generation(rows: pa.Table, generation: int) -> pa.Table:
    at = EVENTS.get_field_index("_generation")
    column = pa.repeat(pa.scalar(generation, pa.uint32()), len(rows))
    return rows.set_column(at, EVENTS.field(at), column)


def _empty(wanted: pa.Field, rows: int) -> pa.Array:
    if wanted.nullable:
        return pa.nulls(rows, wanted.type)
    value: object = "" if wanted.type == pa.string() else 0
    return (
        pa.array(np.full(rows, value).tolist(), wanted.type) if rows else pa.array([], wanted.type)
    )
