"""Declared tables: what tables.sql says of each table, as data to hold a real one against.

    tables.sql ─▶ columns with types and defaults, keys, engine, indexes, projections, window

It reads the form that tables.sql is written in, not any SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from assets.pipeline.clickhouse import table_statements

_CREATE = re.compile(
    r"CREATE TABLE IF NOT EXISTS \S+?\.(?P<table>\w+)\s*\((?P<body>.*)\)\s*"
    r"ENGINE = (?P<engine>.*?)"
    r"(?:\s+PARTITION BY (?P<partition>.*?))?"
    r"\s+ORDER BY (?P<order>.*?)"
    r"(?:\s+TTL .*?)?"
    r"(?:\s+SETTINGS (?P<settings>.*))?",
    re.DOTALL,
)
_COLUMN = re.compile(
    r"(?P<name>\w+)\s+(?P<type>\w+(?:\((?:[^()]|\([^()]*\))*\))?)"
    r"(?:\s+DEFAULT (?P<default>.*?))?(?:\s+CODEC.*)?",
    re.DOTALL,
)
_INDEX = re.compile(r"INDEX (\w+) (.*)", re.DOTALL)
_PROJECTION = re.compile(r"PROJECTION (\w+)\s*\((.*)\)", re.DOTALL)
_WINDOW = re.compile(r"non_replicated_deduplication_window = (\d+)")


@dataclass(frozen=True)
class Column:
    """A column: its type, and the expression of its default, empty for none."""

    type: str
    default: str = ""


@dataclass(frozen=True)
class Table:
    """What matters of a table for what is loaded into it. Codecs and sizes are up to who runs it.

    `window` is how many tokens of inserts it remembers: without, a repeated insert is doubled.
    """

    name: str
    engine: str
    partition_by: str
    order_by: str
    columns: dict[str, Column] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)
    projections: dict[str, str] = field(default_factory=dict)
    window: int = 0


@cache
def declared_tables() -> dict[str, Table]:
    """The tables of this version by name."""
    found = (_CREATE.fullmatch(statement) for statement in table_statements("database"))
    return {match["table"]: _table(match) for match in found if match is not None}


def window_of(settings: str) -> int:
    """How many tokens of inserts a table with these settings remembers, on a server by itself."""
    found = _WINDOW.search(settings)
    return int(found[1]) if found else 0


def _table(match: re.Match[str]) -> Table:
    table = Table(
        match["table"],
        match["engine"],
        match["partition"] or "",
        match["order"][1:-1] if match["order"].startswith("(") else match["order"],
        window=window_of(match["settings"] or ""),
    )
    for part in _parts(match["body"]):
        if index := _INDEX.fullmatch(part):
            table.indexes[index[1]] = index[2]
        elif projection := _PROJECTION.fullmatch(part):
            table.projections[projection[1]] = projection[2]
        elif column := _COLUMN.fullmatch(part):
            table.columns[column["name"]] = Column(column["type"], column["default"] or "")
        else:
            raise ValueError(f"tables.sql has a part of another form: {part!r}")
    return table


def _parts(body: str) -> Iterator[str]:
    """What stands between the commas that are in no parentheses."""
    depth, begin = 0, 0
    for at, sign in enumerate(body):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            yield body[begin:at].strip()
            begin = at + 1
    yield body[begin:].strip()
