"""Exported lines: what is read of an imported file is judged as the records that it would be.

    lines ─exported_value (capture_api)─▶ record values ─judge─▶ verdicts, columns
       └─ what is no exported event ─▶ rejected, with the line itself as the dead letter

Invariant: a line's verdict hangs on that line, the import's project and the moment it was begun, so
a line that is read again, by a redrive or after a crash, gives the same record.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from assets.pipeline.import_file import LineChunk
from assets.pipeline.read import Chunk
from assets.pipeline.reasons import Reason, Rejection
from assets.pipeline.record_head import BROKEN
from assets.pipeline.validate import Judged, Verdict, judge
from capture_api.events.exported import BAD_TIME, MISSING, exported_value
from capture_api.refusal import Refused
from orchestration.ledger.imports import Import

_REASONS = {
    "bad_uuid": Reason.INVALID_UUID,
    "bad_properties": Reason.NOT_AN_OBJECT,
    "too_large": Reason.TOO_LARGE,
    "missing_event_name": Reason.MISSING_FIELD,
    "missing_distinct_id": Reason.MISSING_FIELD,
    MISSING: Reason.MISSING_FIELD,
    BAD_TIME: Reason.WRONG_TYPE,
}
"""What the edge says no with, as the reason of a dead letter; all else is `not_taken`."""


def judge_lines(chunk: Chunk, one: Import) -> Judged:
    """Judge the lines of a file that is imported."""
    lines = chunk.records.column("value").to_pylist()
    lengths: Sequence[int] = chunk.lengths if isinstance(chunk, LineChunk) else ()
    rows: list[int] = []
    values: list[bytes] = []
    rejections: dict[int, Rejection] = {}
    for row, line in enumerate(lines):
        if lengths and lengths[row] > len(line):
            rejections[row] = Rejection(Reason.TOO_LARGE, f"a line of {lengths[row]:,} bytes")
            continue
        outcome = _value(line, one)
        if isinstance(outcome, Rejection):
            rejections[row] = outcome
        else:
            rows.append(row)
            values.append(outcome)
    inner = judge(pa.array(values, pa.binary()))
    places = np.array(rows, np.int64)
    verdicts = np.full(len(lines), Verdict.REJECTED, np.uint8)
    verdicts[places] = inner.verdicts
    rejections |= {rows[at]: rejection for at, rejection in inner.rejections.items()}
    return Judged(verdicts, rejections, places[inner.rows], inner.columns, inner.uuids)


def _value(line: bytes, one: Import) -> bytes | Rejection:
    try:
        line.decode()
    except UnicodeDecodeError:
        return Rejection(Reason.NOT_UTF8, f"{len(line)} bytes")
    try:
        return exported_value(line, one.project_id, one.begun_at)
    except Refused as refused:
        return Rejection(_REASONS.get(refused.code, Reason.NOT_TAKEN), refused.detail[:1_000])
    except msgspec.ValidationError as error:
        return Rejection(Reason.NOT_AN_OBJECT, str(error))
    except BROKEN as error:
        return Rejection(Reason.NOT_JSON, str(error))
