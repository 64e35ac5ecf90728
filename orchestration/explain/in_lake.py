"""The lake's files of a batch: which of its records are wanted, and what became of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.pipeline.batch import Batch, Kind
from assets.pipeline.lake import Lake
from orchestration.explain.record import Origin, Place, Record, Verdict, with_head
from orchestration.explain.wanted import Wanted

_HEAD = ["project_id", "uuid", "event", "distinct_id", "request_id", "received_at"]
_PLACE = ["_appended_at", "_partition", "_offset"]
_SHOWN = {
    Kind.EVENTS: [*_PLACE, *_HEAD],
    Kind.DEAD_LETTERS: [*_PLACE, "reason", "detail", "value"],
    Kind.DUPLICATES: [
        *_PLACE,
        *("project_id", "uuid", "request_id", "first_batch_id", "first_partition", "first_offset"),
    ],
}
_KEYS = {
    Kind.EVENTS: ["uuid", "request_id"],
    Kind.DEAD_LETTERS: ["value"],
    Kind.DUPLICATES: ["uuid", "request_id"],
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Lookup:
    """What to look for in a file: what is wanted, or the record at one place."""

    wanted: Wanted
    place: Place | None = None


def search_batch(lake: Lake, batch: Batch, kind: Kind, lookup: Lookup) -> Iterator[Record]:
    """The records of one of a batch's files that are looked for. Raises UNREADABLE."""
    file = batch.staged.file(kind) if batch.staged else None
    if file is None:
        return
    with lake.open_file(file.path) as source:
        parquet = pq.ParquetFile(source)
        # Files that an earlier version wrote lack what was added since.
        there = set(parquet.schema_arrow.names)
        keys = _KEYS[kind] if lookup.place is None else ["_partition", "_offset"]
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, [name for name in keys if name in there])
            rows = np.flatnonzero(_mask(table, kind, lookup))
            if len(rows):
                shown = [name for name in _SHOWN[kind] if name in there]
                found = parquet.read_row_group(group, shown).take(pa.array(rows))
                for row in found.to_pylist():
                    record = _record(batch, kind, row, lookup)
                    if record is not None:
                        yield record


def _mask(table: pa.Table, kind: Kind, lookup: Lookup) -> npt.NDArray[np.bool_]:
    if lookup.place is not None:
        _, partition, offset = lookup.place
        partitions, offsets = (table.column(name).to_numpy() for name in ("_partition", "_offset"))
        mask: npt.NDArray[np.bool_] = (partitions == partition) & (offsets == offset)
        return mask
    wanted = lookup.wanted
    if kind is Kind.DEAD_LETTERS:
        return mentions(table.column("value"), wanted)
    mask = np.zeros(len(table), np.bool_)
    if "request_id" in table.column_names:
        mask |= _bools(pc.is_in(table.column("request_id"), pa.array(wanted.spellings)))
    if wanted.uuid is not None:
        uuids = table.column("uuid").combine_chunks()
        stored = uuids.storage if isinstance(uuids, pa.ExtensionArray) else uuids
        mask |= _bools(pc.equal(stored, pa.scalar(wanted.uuid.bytes, pa.binary(16))))
    return mask


def mentions(values: Any, wanted: Wanted) -> npt.NDArray[np.bool_]:
    """Which of a column of values have it somewhere in their bytes."""
    found = [pc.match_substring(values, text, ignore_case=True) for text in wanted.spellings]
    return np.asarray(np.any([_bools(each) for each in found], axis=0), np.bool_)


def _bools(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)


def _record(batch: Batch, kind: Kind, row: dict[str, Any], lookup: Lookup) -> Record | None:
    appended = row.get("_appended_at")
    record = Record(
        Place(batch.topic, row["_partition"], row["_offset"]),
        Verdict.STAGED,
        None if appended is None else _microseconds(appended),
        batch.batch_id,
    )
    if kind is Kind.DEAD_LETTERS:
        head = lookup.wanted.head_of(row["value"])
        if head is None and lookup.place is None:
            return None
        letter = replace(
            record, verdict=Verdict.DEAD_LETTER, reason=row["reason"], detail=row["detail"]
        )
        return with_head(letter, head or {})
    head = {name: row[name] for name in _HEAD if row.get(name) is not None}
    head["uuid"] = str(row["uuid"])
    if "received_at" in head:
        head["received_at"] = _microseconds(head["received_at"])
    record = with_head(record, head)
    if kind is Kind.EVENTS:
        return record
    # The topic of the first one stands in its batch: whoever asks fills it in.
    origin = Origin("", row["first_partition"], row["first_offset"], row["first_batch_id"])
    return replace(record, verdict=Verdict.DUPLICATE, duplicate_of=origin)


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
