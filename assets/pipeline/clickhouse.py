"""ClickHouse as the pipeline uses it: one HTTP client, its tables, and its errors sorted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from assets.pipeline.codes import Remedy, clickhouse_remedy
from assets.pipeline.errors import ClickHouseAway, ClickHouseRefused

TABLES_SQL = Path(__file__).with_name("tables.sql")

_VIEW = re.compile(r"CREATE OR REPLACE VIEW \S+\.(\w+)")
_CODE = re.compile(r"(?:Code:|error code) (\d+)")


def connect(address: str, user: str, password: str) -> Client:
    """A client. Raises ClickHouseAway when it does not answer."""
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
    """Make the database and the tables that are missing, and views that are not as they should be.

    The comment of a view names the statement that made it: so only one that changed is replaced.
    """
    for statement in table_statements(database):
        with named_errors("making tables"):
            view = _VIEW.match(statement)
            if view is None:
                client.command(statement)
                continue
            comment = f"tidemark {blake2b(statement.encode(), digest_size=8).hexdigest()}"
            made_of = client.query(
                "SELECT comment FROM system.tables "
                "WHERE database = {database:String} AND name = {name:String}",
                parameters={"database": database, "name": view[1]},
            ).result_rows
            if made_of != [(comment,)]:
                client.command(f"{statement} COMMENT '{comment}'")


def table_statements(database: str) -> list[str]:
    """The statements of tables.sql for a database."""
    text = re.sub(r"--[^\n]*", "", TABLES_SQL.read_text())
    statements = (statement.strip() for statement in text.split(";"))
    return [statement.replace("{database}", database) for statement in statements if statement]


@contextmanager
def named_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises into ClickHouseAway, or ClickHouseRefused: see codes.py."""
    try:
        yield
    except ClickHouseError as error:
        found = _CODE.search(str(error))
        code = None if found is None else int(found[1])
        if code is None or clickhouse_remedy(code) in (Remedy.WAIT, Remedy.ALONE):
            raise ClickHouseAway(f"ClickHouse, {doing}: {_first_line(error)}", code) from error
        raise ClickHouseRefused(
            f"ClickHouse refused {doing}: {_first_line(error)}", code
        ) from error
    except OSError as error:
        raise ClickHouseAway(f"ClickHouse, {doing}: {error}") from error


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0][:500]
