"""A hash for every row of a batch, made alike from the lake's Parquet and by ClickHouse.

    staged Parquet ──row_text──▶ SHA-256 ──▶ 64 bits ─┐
                                                      ├ the same, unless the row was altered
    table ──row_text in SQL────▶ SHA256  ──▶ 64 bits ─┘

A row is spelled as its columns one after the other, each as `length:bytes`, or `-` for null, so
that no two different rows are spelled alike. Only hashes come over the wire, and ClickHouse makes
its own on all its cores. Columns are those of the file: one that was added to the table later has
nothing to be held against.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client

from assets.pipeline.batch import StagedFile
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.columns import MICROSECONDS, MILLISECONDS
from assets.pipeline.lake import Lake

_ROWS_AT_ONCE = 16_384

Columns = dict[str, pa.DataType]


@dataclass(frozen=True)
class HashedRows:
    """Where each row's record stands, and the row's hash. Three arrays of one length."""

    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    hash: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offset)


def columns_of(lake: Lake, file: StagedFile) -> Columns:
    """The columns of a staged file."""
    with lake.open_file(file.path) as source:
        schema = pq.ParquetFile(source).schema_arrow
    return {field.name: field.type for field in schema}


def staged_rows(lake: Lake, file: StagedFile) -> HashedRows:
    """The rows of a staged file, some thousands in memory at a time."""
    found: list[HashedRows] = []
    with lake.open_file(file.path) as source:
        for some in pq.ParquetFile(source).iter_batches(_ROWS_AT_ONCE):
            texts = row_text([some.column(name) for name in some.schema.names])
            digests = b"".join(hashlib.sha256(text).digest()[:8] for text in texts.to_pylist())
            found.append(
                HashedRows(
                    some.column("_partition").to_numpy(),
                    some.column("_offset").to_numpy(),
                    np.frombuffer(digests, "<u8"),
                )
            )
    return joined(found)


def loaded_rows(
    client: Client,
    database: str,
    table: str,
    columns: Columns,
    batch_ids: Sequence[str],
    arrival_date: date | None = None,
) -> dict[str, HashedRows]:
    """The table's rows of these batches by batch id: those of that arrival date, or all."""
    text = ", ".join(_piece_in_sql(name, type_) for name, type_ in columns.items())
    of_date = "" if arrival_date is None else " AND arrival_date = {arrival_date:Date}"
    rows = _query(
        client,
        f"SELECT toString(_batch_id) AS batch_id, _partition, _offset, "
        f"reinterpretAsUInt64(substring(SHA256(concat({text}, '')), 1, 8)) AS hash "
        "FROM {database:Identifier}.{table:Identifier} "
        f"WHERE _batch_id IN {{batch_ids:Array(String)}}{of_date}",
        database=database,
        table=table,
        batch_ids=list(batch_ids),
        arrival_date=arrival_date,
    )
    ids = rows["batch_id"].cast(pa.string())
    found: dict[str, HashedRows] = {}
    for batch_id in pc.unique(ids).to_pylist():
        own = rows.filter(pc.equal(ids, batch_id))
        found[batch_id] = HashedRows(
            own["_partition"].to_numpy(), own["_offset"].to_numpy(), own["hash"].to_numpy()
        )
    return found


def loaded_texts(
    client: Client,
    database: str,
    table: str,
    columns: Columns,
    batch_id: str,
    partition: int,
    offsets: Sequence[int],
) -> pa.Table:
    """The columns of some rows of a batch, as text."""
    texts = ", ".join(
        f"{_text_in_sql(name, type_)} AS `t_{name}`" for name, type_ in columns.items()
    )
    rows = _query(
        client,
        f"SELECT {texts} FROM {{database:Identifier}}.{{table:Identifier}} "
        "WHERE _batch_id = {batch_id:String} AND _partition = {partition:Int32} "
        "AND _offset IN {offsets:Array(Int64)}",
        database=database,
        table=table,
        batch_id=batch_id,
        partition=partition,
        offsets=list(offsets),
    )
    return pa.table({name: rows[f"t_{name}"].cast(pa.binary()) for name in columns})


def column_texts(rows: pa.Table) -> pa.Table:
    """The columns of staged rows, as text."""
    rows = rows.combine_chunks()
    return pa.table({name: _text(_one_chunk(rows[name])) for name in rows.column_names})


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _query(client: Client, query: str, **parameters: object) -> pa.Table:
    with named_errors(f"comparing rows of {parameters['table']}"):
        return client.query_arrow(query, parameters=parameters)


def joined(parts: Sequence[HashedRows]) -> HashedRows:
    """All rows of several."""
    return HashedRows(
        np.concatenate([np.empty(0, np.int32), *(part.partition for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.offset for part in parts)]),
        np.concatenate([np.empty(0, np.uint64), *(part.hash for part in parts)]),
    )


def row_text(columns: Sequence[pa.Array]) -> pa.BinaryArray:
    """Each row spelled as bytes."""
    return pc.binary_join_element_wise(*map(_piece, columns), pa.scalar(b"", pa.binary()))


def _piece(column: pa.Array) -> pa.BinaryArray:
    """A column spelled so that its end is known: `length:bytes`, `-` for null."""
    text = _text(column)
    length = pc.binary_length(text).cast(pa.string()).cast(pa.binary())
    colon = pa.scalar(b":", pa.binary())
    return pc.binary_join_element_wise(length, text, colon).fill_null(b"-")


def _text(column: pa.Array) -> pa.BinaryArray:
    """A column's values as bytes: text as it is, numbers and times in decimal, uuids raw."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_date(column.type):
        column = column.cast(pa.int32())
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.binary())


def _piece_in_sql(name: str, type_: pa.DataType) -> str:
    """The same of a table's column, in SQL."""
    text = _text_in_sql(name, type_)
    piece = f"concat(toString(length({text})), ':', {text})"
    return f"ifNull({piece}, '-')"


def _text_in_sql(name: str, type_: pa.DataType) -> str:
    """A column's values as `_text` spells them."""
    if isinstance(type_, pa.UuidType):
        return f"concat(UUIDStringToNum(toString({name})), '')"  # a cast would cut zeros off
    if type_ == MICROSECONDS:
        return f"toString(toUnixTimestamp64Micro({name}))"
    if type_ == MILLISECONDS:
        return f"toString(toUnixTimestamp64Milli({name}))"
    if pa.types.is_date(type_):
        return f"toString(toInt32({name}))"
    if pa.types.is_integer(type_):
        return f"toString({name})"
    return name
