"""Validate: every record of a chunk gets a verdict.

    tombstone   its value is null
    rejected    it is not a record, or a column cannot hold it; with a reason of the closed list
    duplicate   its project has sent the same uuid before (decided in stage.py, with the index)
    ok          everything else

One bad record never fails a batch: its bytes are kept as a dead letter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from assets.pipeline.columns import REQUIRED_HEAD
from assets.pipeline.parse import PARSED, parse_values
from assets.pipeline.reasons import Reason, Rejection
from capture_api.events.record import EARLIEST_US, LATEST_US, RECORD_VERSION


class Verdict(IntEnum):
    """What became of a record."""

    OK = 0
    REJECTED = 1
    DUPLICATE = 2
    TOMBSTONE = 3


_LARGEST_UINT32 = (1 << 32) - 1

_HEX = np.full(256, 255, np.uint8)
for _digit, _character in enumerate("0123456789abcdef"):
    _HEX[ord(_character)] = _HEX[ord(_character.upper())] = _digit
_HYPHENS = [8, 13, 18, 23]
_DIGITS = [at for at in range(36) if at not in _HYPHENS]


@dataclass(frozen=True)
class Judged:
    """A chunk's verdicts, one a record, and the columns of those that are ok so far.

    `rows` says which record each row of `columns` is; `uuids` are their 16 bytes each.
    """

    verdicts: npt.NDArray[np.uint8]
    rejections: dict[int, Rejection]
    rows: npt.NDArray[np.int64]
    columns: pa.Table
    uuids: npt.NDArray[np.uint8]


def judge(values: pa.BinaryArray, projects: npt.NDArray[np.int64] | None = None) -> Judged:
    """Parse and check the values of a chunk.

    `projects`, one a value, are those of records that came in before their project was there.
    """
    verdicts = np.full(len(values), Verdict.OK, np.uint8)
    rejections: dict[int, Rejection] = {}

    null = values.is_null().to_numpy(zero_copy_only=False)
    verdicts[null] = Verdict.TOMBSTONE
    empty = pc.equal(pc.binary_length(values), 0).fill_null(False).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(empty):
        rejections[int(row)] = Rejection(Reason.EMPTY_VALUE, "0 bytes")
    filled = np.flatnonzero(~null & ~empty)

    parsed = parse_values(values if len(filled) == len(values) else values.take(pa.array(filled)))
    for at, rejection in parsed.rejections.items():
        rejections[int(filled[at])] = rejection
    rows = filled[parsed.rows]
    if projects is not None:
        parsed = replace(parsed, columns=_with_projects(parsed.columns, projects[rows]))
    fine = np.ones(len(rows), bool)

    def reject(bad: npt.NDArray[np.bool_], reason: Reason, field: str) -> None:
        for at in np.flatnonzero(bad & fine):
            seen = parsed.columns.column(field)[int(at)].as_py()
            rejections[int(rows[at])] = Rejection(reason, f"{field} is {str(seen)[:200]!r}")
        fine[bad] = False

    for field in REQUIRED_HEAD:
        if parsed.columns.column(field).null_count:
            reject(_nulls(parsed.columns, field), Reason.MISSING_FIELD, field)
    version = _ints(parsed.columns, "v")
    reject((version != 1) & (version != RECORD_VERSION), Reason.UNKNOWN_VERSION, "v")
    for field in ("project_id", "flags"):
        number = _ints(parsed.columns, field)
        reject((number < 0) | (number > _LARGEST_UINT32), Reason.NUMBER_OUT_OF_RANGE, field)
    for field in ("timestamp", "received_at", "sent_at"):
        time = _ints(parsed.columns, field)
        reject((time < EARLIEST_US) | (time > LATEST_US), Reason.TIME_OUT_OF_RANGE, field)
    uuids, good = uuid_bytes(parsed.columns.column("uuid"))
    reject(~good, Reason.INVALID_UUID, "uuid")
    # Last, because such a record is sound in all else and can be loaded once its project is known.
    reject(_ints(parsed.columns, "project_id") == 0, Reason.UNKNOWN_PROJECT, "project_id")

    verdicts[list(rejections)] = Verdict.REJECTED
    columns = parsed.columns
    if not fine.all():
        columns = columns.filter(pa.array(fine)) if fine.any() else PARSED.empty_table()
    return Judged(verdicts, rejections, rows[fine], columns, uuids[fine])


def _with_projects(columns: pa.Table, projects: npt.NDArray[np.int64]) -> pa.Table:
    """The columns with the project of each record that has none (0) of its own."""
    column = columns.column("project_id")
    unknown = pc.equal(column, 0)
    at = columns.schema.get_field_index("project_id")
    return columns.set_column(
        at, columns.schema.field(at), pc.if_else(unknown, pa.array(projects), column)
    )


def uuid_bytes(texts: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The 16 bytes of each UUID in text form, and which texts are one."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    right_length = pc.equal(pc.binary_length(texts), 36).fill_null(False)
    good = right_length.to_numpy(zero_copy_only=False).copy()
    if not good.all():
        texts = pc.if_else(right_length, texts, "-" * 36)
    characters = _characters(texts)
    digits = _HEX[characters[:, _DIGITS]]
    good &= (digits < 16).all(axis=1)
    good &= (characters[:, _HYPHENS] == ord("-")).all(axis=1)
    return (digits[:, ::2] << 4 | (digits[:, 1::2] & 15)).astype(np.uint8), good


def _characters(texts: pa.StringArray) -> npt.NDArray[np.uint8]:
    """The characters of texts that are all 36 bytes long, one row a text."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset :][: len(texts) + 1]
    if not len(texts):
        return np.empty((0, 36), np.uint8)
    flat = np.frombuffer(texts.buffers()[2], np.uint8)
    return flat[int(offsets[0]) : int(offsets[-1])].reshape(len(texts), 36)


def _nulls(columns: pa.Table, field: str) -> npt.NDArray[np.bool_]:
    return np.asarray(columns.column(field).is_null().to_numpy())


def _ints(columns: pa.Table, field: str) -> npt.NDArray[np.int64]:
    """An integer column, nulls (reported apart where they matter) as 1."""
    return np.asarray(columns.column(field).fill_null(1).to_numpy())
