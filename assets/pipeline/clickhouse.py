"""ClickHouse as the pipeline uses it: one HTTP client, its tables, and its errors sorted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from assets.pipeline.errors import BatchError, TransientError

TABLES_SQL = Path(__file__).with_name("tables.sql")

TRANSIENT_CODES = {
    159: "TIMEOUT_EXCEEDED",
    164: "READONLY",
    198: "DNS_ERROR",
    202: "TOO_MANY_SIMULTANEOUS_QUERIES",
    209: "SOCKET_TIMEOUT",
    210: "NETWORK_ERROR",
    236: "ABORTED",
    241: "MEMORY_LIMIT_EXCEEDED",
    242: "TABLE_IS_READ_ONLY",
    243: "NOT_ENOUGH_SPACE",
    252: "TOO_MANY_PARTS",
    285: "TOO_FEW_LIVE_REPLICAS",
    319: "UNKNOWN_STATUS_OF_INSERT",
    999: "KEEPER_EXCEPTION",
}
"""Errors of ClickHouse that pass by themselves, or once somebody has made room."""

_CODE = re.compile(r"(?:Code:|error code) (\d+)")


def connect(address: str, user: str, password: str) -> Client:
    """A client. Raises TransientError when ClickHouse does not answer."""
    with named_errors("connecting"):
        return clickhouse_connect.get_client(
            dsn=address,
            username=user,
            password=password,
            autogenerate_session_id=False,
            connect_timeout=10,
            send_receive_timeout=600,
        )


def make_tables(client: Client, database: str) -> None:
    """Make the database and the tables that are missing."""
    for statement in table_statements(database):
        with named_errors("making tables"):
            client.command(statement)


def table_statements(database: str) -> list[str]:
    """The statements of tables.sql for a database."""
    text = re.sub(r"--[^\n]*", "", TABLES_SQL.read_text())
    statements = (statement.strip() for statement in text.split(";"))
    return [statement.replace("{database}", database) for statement in statements if statement]


@contextmanager
def named_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises into TransientError, or BatchError when a retry is in vain."""
    try:
        yield
    except ClickHouseError as error:
        code = _CODE.search(str(error))
        if code is None or int(code[1]) in TRANSIENT_CODES:
            raise TransientError(f"ClickHouse, {doing}: {_first_line(error)}") from error
        raise BatchError(f"ClickHouse refused {doing}: {_first_line(error)}") from error
    except OSError as error:
        raise TransientError(f"ClickHouse, {doing}: {error}") from error


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0][:500]
