"""Columns: what is staged and what ClickHouse has are the same, by name and by type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from assets.pipeline.clickhouse import make_tables, table_statements
from assets.pipeline.columns import DEAD_LETTERS, EVENTS
from tests.stack import Stack

NewStack = Callable[..., Stack]

ADDED_BY_CLICKHOUSE = {"_run_id", "_inserted_at"}

CLICKHOUSE_TYPES = {
    pa.uint32(): "UInt32",
    pa.int32(): "Int32",
    pa.int64(): "Int64",
    pa.string(): "String",
    pa.binary(): "String",
    pa.uuid(): "UUID",
    pa.date32(): "Date",
    pa.timestamp("us", tz="UTC"): "DateTime64(6, 'UTC')",
    pa.timestamp("ms", tz="UTC"): "DateTime64(3, 'UTC')",
}


@pytest.mark.parametrize(("table", "schema"), [("events", EVENTS), ("dead_letters", DEAD_LETTERS)])
def test_a_table_has_the_staged_columns(new_stack: NewStack, table: str, schema: pa.Schema) -> None:
    """Every staged column is in the table, of its type and nullable alike, and no other is."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    make_tables(stack.client, stack.database)
    described = stack.rows(f"DESCRIBE TABLE {{database}}.{table}")
    columns = {
        name: type_.removeprefix("LowCardinality(").removesuffix(")")
        if type_.startswith("LowCardinality(")
        else type_
        for name, type_, *_ in described
    }
    for added in ADDED_BY_CLICKHOUSE:
        del columns[added]
    assert columns == {
        field.name: f"Nullable({CLICKHOUSE_TYPES[field.type]})"
        if field.nullable
        else CLICKHOUSE_TYPES[field.type]
        for field in schema
    }


def test_tables_can_be_made_again(new_stack: NewStack) -> None:
    """Making tables that exist changes nothing."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    for _ in range(2):
        make_tables(stack.client, stack.database)
    made = {name for (name,) in stack.rows("SHOW TABLES FROM {database}")}
    assert {"events", "dead_letters", "batches", "batch_attempts"} <= made


def test_one_look_is_enough_where_all_is_made(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made that is there; what is missing is, whichever it is."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    make_tables(stack.client, stack.database)
    said: list[str] = []
    command = stack.client.command

    def count(statement: str, *args: Any, **options: Any) -> Any:
        said.append(statement)
        return command(statement, *args, **options)

    monkeypatch.setattr(stack.client, "command", count)
    make_tables(stack.client, stack.database)
    assert said == []
    for missing in ("TABLE {0}.topic_standings", "VIEW {0}.pipeline_status"):
        command(f"DROP {missing.format(stack.database)} SYNC")
        make_tables(stack.client, stack.database)
        assert len(said) == len(table_statements(stack.database))
        said.clear()
        make_tables(stack.client, stack.database)
        assert said == []


def test_loaded_tables_remember_tokens_and_split_by_arrival_date(new_stack: NewStack) -> None:
    """Without a window, or with other partitions, an insert would not be all or nothing."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    make_tables(stack.client, stack.database)
    for table in ("events", "dead_letters"):
        ((key, statement),) = stack.rows(
            "SELECT partition_key, create_table_query FROM system.tables "
            "WHERE database = {of:String} AND name = {table:String}",
            of=stack.database,
            table=table,
        )
        assert key == "arrival_date"
        assert "non_replicated_deduplication_window = 10000" in statement


def test_a_view_is_made_anew_when_it_is_defined_otherwise(new_stack: NewStack) -> None:
    """An older definition does not stay; the one of now is left alone."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    view = f"{stack.database}.pipeline_status"

    def id_of_view() -> object:
        return stack.rows(
            "SELECT uuid FROM system.tables "
            "WHERE database = {of:String} AND name = 'pipeline_status'",
            of=stack.database,
        )

    make_tables(stack.client, stack.database)
    made = id_of_view()
    make_tables(stack.client, stack.database)
    assert id_of_view() == made
    stack.client.command(f"CREATE OR REPLACE VIEW {view} AS SELECT 1 AS older")
    make_tables(stack.client, stack.database)
    assert stack.rows(f"SELECT topic, all_complete_before FROM {view}") == []


def test_every_statement_names_the_database() -> None:
    """No table is made outside of the database of the settings."""
    for statement in table_statements("elsewhere"):
        assert "elsewhere" in statement.split("\n")[0]
        assert "{database}" not in statement
