"""Upgrades: a ledger of an older version gets the tables of this one, and keeps its rows.

    missing tables ─▶ missing and narrow columns ─▶ missing indexes ─▶ ids for one row only (SQLite)

Each step is looked for before it is taken, and is one transaction: both databases take back the
definition of a table with it. So a crash leaves steps that are done and steps that are not, and
whoever opens the ledger next goes on. Two processes may open it at once: the second one of a step
waits, and finds it taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Column, Connection, Engine, Table, inspect
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.schema import CreateIndex

from orchestration.ledger.tables import metadata


def bring_up_to_date(engine: Engine) -> None:
    """Make the ledger's tables, or what they lack."""
    try:
        metadata.create_all(engine)
    except (IntegrityError, ProgrammingError):
        metadata.create_all(engine)  # another process was making them at the same moment
    for statement in _due(engine):
        with _unless_another_was_first(), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    if engine.dialect.name == "sqlite":
        for table in _whose_ids_come_again(engine):
            _number_on(engine, table)


@contextmanager
def _unless_another_was_first() -> Iterator[None]:
    """Pass over what another process has added at the same moment."""
    try:
        yield
    except DBAPIError as error:
        if "already exists" not in str(error) and "duplicate column" not in str(error):
            raise


def _due(engine: Engine) -> list[str]:
    """What makes the tables that are there what they should be; indexes last: of new columns.

    A column that came later has its default in older rows, too, and is empty where it has none.
    """
    looked_at = inspect(engine)
    columns, indexes = looked_at.get_multi_columns(), looked_at.get_multi_indexes()
    tables = {name: metadata.tables[name] for _, name in columns if name in metadata.tables}
    found = {name: {each["name"]: each for each in of} for (_, name), of in columns.items()}
    named = {name: {each["name"] for each in of} for (_, name), of in indexes.items()}
    return [
        *(
            statement
            for name, table in tables.items()
            for column in table.columns
            for statement in _changes(engine, column, found[name].get(column.name))
        ),
        *(
            str(CreateIndex(index).compile(dialect=engine.dialect))
            for name, table in tables.items()
            for index in table.indexes
            if index.name not in named.get(name, ())
        ),
    ]


def _changes(engine: Engine, column: Column[Any], found: Mapping[str, Any] | None) -> Iterator[str]:
    """What makes a table's column that was found, or was not, the one that it should be."""
    table, name, kind = column.table.name, column.name, column.type.compile(engine.dialect)
    default = column.server_default.arg if column.server_default is not None else None  # type: ignore[attr-defined]
    if found is None:
        rest = "" if default is None else f" DEFAULT '{default}' NOT NULL"
        yield f'ALTER TABLE {table} ADD COLUMN "{name}" {kind}{rest}'
        return
    if default is not None and found["nullable"]:  # as it was added once, without its default
        yield f'UPDATE {table} SET "{name}" = \'{default}\' WHERE "{name}" IS NULL'
    length = getattr(found["type"], "length", None)
    if engine.dialect.name != "sqlite" and length and length < (column.type.length or 0):  # type: ignore[attr-defined]
        yield f'ALTER TABLE {table} ALTER COLUMN "{name}" TYPE {kind}'


def _whose_ids_come_again(engine: Engine) -> list[Table]:
    """Tables as they were made once: SQLite gives the id of a deleted row to another one."""
    wanted = [each for each in metadata.sorted_tables if _is_to_number_on(each)]
    with engine.connect() as connection:
        return [table for table in wanted if not _numbers_on(connection, table)]


def _is_to_number_on(table: Table) -> bool:
    return bool(table.dialect_options["sqlite"]["autoincrement"])


def _numbers_on(connection: Connection, table: Table) -> bool:
    made = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
    ).scalar_one()
    return "AUTOINCREMENT" in made


def _number_on(engine: Engine, table: Table) -> None:
    """Make a table anew that gives no id twice, with the rows that it has."""
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    with engine.connect() as connection:
        # SQLite takes this outside of a transaction only; the connection is used for nothing else.
        connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        with connection.begin():
            if _numbers_on(connection, table):  # by now: another process was first
                return
            connection.exec_driver_sql(
                f"CREATE TEMP TABLE kept AS SELECT {columns} FROM {table.name}"
            )
            table.drop(connection)
            table.create(connection)
            connection.exec_driver_sql(
                f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM temp.kept"
            )
            connection.exec_driver_sql("DROP TABLE temp.kept")
