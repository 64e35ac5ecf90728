"""Schema: do ClickHouse's tables, and the files staged for them, have the form this version makes?

    tables.sql ──▶ declared ─┐
    system.columns, … ─▶ found ─┴─▶ drifts, each naming its column
    columns.py ──▶ the schema of a staged file ─▶ the same of files

One query, whatever the number of tables. What somebody has added (a column, an index) is no drift:
the insert names its columns. Codecs, sizes and time to live are up to who runs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from clickhouse_connect.driver.client import Client

from assets.pipeline.batch import Batch, Kind
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.columns import DEAD_LETTERS, EVENTS
from assets.pipeline.declared_tables import Column, Table, declared_tables, window_of
from assets.pipeline.lake import UNREADABLE, Lake
from assets.pipeline.version import TRANSFORM_VERSION

STAGED = {Kind.EVENTS: EVENTS, Kind.DEAD_LETTERS: DEAD_LETTERS}

_FOUND = """
SELECT 'table', name, '', engine_full, partition_key, sorting_key
FROM system.tables WHERE database = {database:String}
UNION ALL
SELECT 'column', table, name, type, default_expression, ''
FROM system.columns WHERE database = {database:String}
UNION ALL
SELECT 'index', table, name, concat(expr, ' TYPE ', type_full, ' GRANULARITY ',
    toString(granularity)), '', ''
FROM system.data_skipping_indices WHERE database = {database:String}
UNION ALL
SELECT 'projection', table, name, query, '', ''
FROM system.projections WHERE database = {database:String}
"""

_CLUSTERED = ("Replicated", "Shared")
"""What an engine's name may begin with besides: it is the same on a cluster, or in the cloud."""


@dataclass(frozen=True)
class Schemas:
    """What was looked at, what has drifted, and what is there besides, in words."""

    tables: int
    files: int
    drifts: tuple[str, ...]
    besides: tuple[str, ...]


def look_at_schemas(client: Client, database: str, lake: Lake, batches: Sequence[Batch]) -> Schemas:
    """Hold the tables, and the newest staged file of each kind, against what this version makes."""
    found = _found_tables(client, database)
    declared = declared_tables()
    drifts: list[str] = []
    for name, table in declared.items():
        if name in found:
            drifts += _drifts(table, found[name], database)
        else:
            drifts.append(f"the table {name} is missing: the next run makes it")
    files = 0
    for kind, schema in STAGED.items():
        newest = _newest_file(batches, kind)
        if newest is not None:
            files += 1
            drifts += _file_drifts(lake, newest, kind, schema)
    besides = [
        f"{name}.{column}"
        for name, table in found.items()
        if name in declared
        for column in table.columns
        if column not in declared[name].columns
    ]
    return Schemas(len(declared), files, tuple(drifts), tuple(besides))


def _found_tables(client: Client, database: str) -> dict[str, Table]:
    with named_errors("looking at the tables' schema"):
        rows = client.query(_FOUND, parameters={"database": database}).result_rows
    of_kind: dict[tuple[str, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    for kind, table, name, *rest in rows:
        of_kind[kind, table][name] = tuple(map(str, rest))
    return {
        name: Table(
            name,
            engine,
            partition_by,
            order_by,
            {of: Column(a, b) for of, (a, b, _) in of_kind["column", name].items()},
            {of: a for of, (a, *_) in of_kind["index", name].items()},
            {of: a for of, (a, *_) in of_kind["projection", name].items()},
            window_of(engine),
        )
        for kind, name, _, engine, partition_by, order_by in rows
        if kind == "table"
    }


def _drifts(declared: Table, found: Table, database: str) -> Iterator[str]:
    name = declared.name
    alter = f"ALTER TABLE {database}.{name}"
    for column, wanted in declared.columns.items():
        there = found.columns.get(column)
        default = f" DEFAULT {wanted.default}" if wanted.default else ""
        if there is None:
            yield (
                f"{name}.{column} is missing: {alter} ADD COLUMN {column} {wanted.type}{default}"
            )
            continue
        if _squeezed(there.type) != _squeezed(wanted.type):
            yield (
                f"{name}.{column} is {there.type}, this version writes {wanted.type}: "
                f"{alter} MODIFY COLUMN {column} {wanted.type}"
            )
        if _squeezed(there.default) != _squeezed(wanted.default):
            yield (
                f"{name}.{column} has the default {there.default or 'none'}, this version's is "
                f"{wanted.default or 'none'}: {alter} MODIFY COLUMN {column} {wanted.type}{default}"
            )
    for what, key, wanted_key in (
        ("partitioned by", found.partition_by, declared.partition_by),
        ("ordered by", found.order_by, declared.order_by),
    ):
        if _squeezed(key) != _squeezed(wanted_key):
            yield (
                f"{name} is {what} {key or 'nothing'}, this version's by {wanted_key}: it needs to "
                "be a new table"
            )
    yield from _other_drifts(declared, found, alter)


def _other_drifts(declared: Table, found: Table, alter: str) -> Iterator[str]:
    name = declared.name
    engine = found.engine.partition("(")[0].partition(" ")[0]
    alone = not engine.startswith(_CLUSTERED)
    for prefix in _CLUSTERED:
        engine = engine.removeprefix(prefix)
    wanted_engine = declared.engine.partition("(")[0]
    if engine != wanted_engine:
        yield f"{name} has the engine {engine}, this version's is {wanted_engine}"
    if alone and found.window < declared.window:
        yield (
            f"{name} remembers {found.window:,} inserts, this version's {declared.window:,}: "
            f"{alter} MODIFY SETTING non_replicated_deduplication_window = {declared.window}"
        )
    for what, there, wanted in (
        ("projection", found.projections, declared.projections),
        ("index", found.indexes, declared.indexes),
    ):
        for of, text in wanted.items():
            add = f"{alter} ADD {what.upper()} {of} " + (
                f"({' '.join(text.split())})" if what == "projection" else text
            )
            if of not in there:
                yield f"the {what} {of} of {name} is missing: {add}"
            elif _squeezed(there[of]) != _squeezed(text):
                yield (
                    f"the {what} {of} of {name} is another one ({' '.join(there[of].split())}): "
                    f"drop it, then {add}"
                )


def _newest_file(batches: Sequence[Batch], kind: Kind) -> Batch | None:
    """The newest batch that this version has staged and that has such a file."""
    found = [
        batch
        for batch in batches
        if batch.code_version == TRANSFORM_VERSION
        and batch.staged is not None
        and batch.staged.file(kind) is not None
    ]
    return max(found, key=lambda batch: batch.planned_at, default=None)


def _file_drifts(lake: Lake, batch: Batch, kind: Kind, schema: pa.Schema) -> Iterator[str]:
    file = batch.staged.file(kind) if batch.staged else None
    assert file is not None
    of = f"the staged file of batch {batch.batch_id}, {file.path},"
    try:
        with lake.open_file(file.path) as source:
            found = pq.read_schema(source)
    except UNREADABLE as error:
        yield f"{of} cannot be read: {' '.join(str(error).split())}"
        return
    for wanted in schema:
        at = found.get_field_index(wanted.name)
        if at < 0:
            yield f"{of} has no column {wanted.name}"
        elif found.field(at).type != wanted.type:
            yield f"{of} has {wanted.name} as {found.field(at).type}, this version {wanted.type}"
    for name in found.names:
        if name not in schema.names:
            yield f"{of} has the column {name}, of which this version knows nothing"


def _squeezed(text: str) -> str:
    """Without what is only a matter of writing."""
    return "".join(text.split()).replace("`", "")
