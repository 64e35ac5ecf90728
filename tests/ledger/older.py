"""Ledgers as older versions made them: what came later is taken away again."""

from __future__ import annotations

from sqlalchemy import Engine

NUMBERED = ("rules", "gaps", "alarms", "rebuilds")
"""Tables whose ids SQLite once gave again."""


def make_older(ledger: Engine) -> None:
    """Take away columns, indexes, tables, room in a column, and on SQLite what keeps ids apart."""
    with ledger.begin() as connection:
        connection.exec_driver_sql("DROP INDEX staged_files_marked")
        for table, column in (
            ("attempts", "remedy"),
            ("batches", "timings"),
            ("batches", "rows_let_go_at"),
            ("staged_files", "let_go_at"),
            ("rebuilds", "way"),
        ):
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.exec_driver_sql("DROP INDEX redrive_letters_by_old_batch")
        # One that is of a column which came later.
        connection.exec_driver_sql("DROP INDEX batches_by_state")
        connection.exec_driver_sql("ALTER TABLE batches DROP COLUMN dead_letters_loaded_at")
        connection.exec_driver_sql("DROP TABLE backoffs")
        if ledger.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE leases ALTER COLUMN name TYPE VARCHAR(200)")
    if ledger.dialect.name == "sqlite":
        let_ids_come_again(ledger)


def let_ids_come_again(ledger: Engine) -> None:
    """Make tables of SQLite as they were made once, with the rows that they have."""
    with ledger.connect() as connection:
        connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        with connection.begin():
            for table in NUMBERED:
                made = connection.exec_driver_sql(
                    "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL "
                    "ORDER BY type DESC",
                    (table,),
                ).all()
                connection.exec_driver_sql(f"CREATE TEMP TABLE rows_of AS SELECT * FROM {table}")
                connection.exec_driver_sql(f"DROP TABLE {table}")
                for (statement,) in made:
                    assert statement.startswith(("CREATE TABLE", "CREATE INDEX"))
                    connection.exec_driver_sql(statement.replace(" AUTOINCREMENT", ""))
                connection.exec_driver_sql(f"INSERT INTO {table} SELECT * FROM temp.rows_of")
                connection.exec_driver_sql("DROP TABLE temp.rows_of")
