"""The table that the peers fill: the columns and codecs of `events`, and nothing else.

No projection, no index, no deduplication window: they are what Tidemark pays to prove a batch,
and the usual loop has no use for them.
"""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

DATABASE = "plain"
TABLE = f"{DATABASE}.events"

_TIDEMARKS_OWN = ("_batch_id", "_generation", "_run_id")
"""What only a planned batch can say; a peer leaves these columns at their defaults."""


def make_plain_table(client: Client, database: str) -> None:
    """Make TABLE after the `events` of that database, which exists."""
    found = client.query(
        "SELECT name, type, compression_codec, default_kind, default_expression "
        "FROM system.columns WHERE database = {database:String} AND table = 'events' "
        "ORDER BY position",
        parameters={"database": database},
    ).result_rows
    columns = [
        " ".join(
            (
                name,
                kind,
                f"{default} {expression}" if default and name not in _TIDEMARKS_OWN else "",
                codec,
            )
        )
        for name, kind, codec, default, expression in found
    ]
    (keys,) = client.query(
        "SELECT partition_key, sorting_key FROM system.tables "
        "WHERE database = {database:String} AND name = 'events'",
        parameters={"database": database},
    ).result_rows
    client.command(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    client.command(
        f"CREATE TABLE {TABLE} ({', '.join(columns)}) ENGINE = MergeTree "
        f"PARTITION BY {keys[0]} ORDER BY ({keys[1]})"
    )
