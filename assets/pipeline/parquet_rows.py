"""Rows of a Parquet file as lines of JSON, as the same export has them in its other form."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.ledger.imports import FIRST_ROW

_ROWS_AT_ONCE = 1_000
_UUID_BYTES = 16

_encoder = msgspec.json.Encoder(enc_hook=str)


def lines_of(file: pq.ParquetFile, start: int) -> Iterator[tuple[int, bytes]]:
    """Each row from that one on: its number, and its line."""
    number = FIRST_ROW
    footer = file.metadata
    for group in range(footer.num_row_groups):
        rows = footer.row_group(group).num_rows
        if number + rows <= start:
            number += rows
            continue
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group]):
            skipped = min(len(batch), max(0, start - number))
            number += skipped
            for row in _plain(batch.slice(skipped)).to_pylist():
                yield number, _encoder.encode(row)
                number += 1


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same in types that JSON has words for."""
    columns = [_plain_column(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain_column(column: pa.Array) -> pa.Array:
    """Times to the µs and in UTC; text that is stored as bytes, UUIDs among it, as text."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us"), safe=False).cast(pa.timestamp("us", "UTC"))
    if kind == pa.binary(_UUID_BYTES):
        uuids = [None if each is None else str(UUID(bytes=each)) for each in column.to_pylist()]
        return pa.array(uuids, pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        texts = [None if t is None else t.decode(errors="replace") for t in column.to_pylist()]
        return pa.array(texts, pa.string())
    return column
