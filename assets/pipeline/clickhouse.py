"""ClickHouse as the pipeline uses it: one HTTP client, its tables, and its errors sorted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from assets.pipeline.codes import Remedy, clickhouse_remedy
from assets.pipeline.errors import ClickHouseAway, ClickHouseRefused

TABLES_SQL = Path(__file__).with_name("tables.sql")

_VIEW = re.compile(r"CREATE OR REPLACE VIEW \S+\.(\w+)")
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS \S+\.(\w+)")
_ADDRESS = re.compile(r"executing HTTP request attempt \d+ \((\S+)\)")
_CODE = re.compile(r"(?:Code:|error code) (\d+)")


def connect(address: str, user: str, password: str) -> Client:
    """A client. Raises ClickHouseAway when it does not answer."""
    # It logs what it raises, too; whoever catches that tells it, in one line.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    with named_errors("connecting"):
        return clickhouse_connect.get_client(
            dsn=address,
            interface=urlsplit(address).scheme,  # the client itself goes by the port alone
            username=user,
            password=password,
            autogenerate_session_id=False,
            connect_timeout=10,
            send_receive_timeout=600,
        )


def make_tables(client: Client, database: str) -> None:
    """Make the database and what is missing or not as it should be in it.

    Views are made last, and their comment names all the statements: where every table is and every
    view has that comment, one look is enough.
    """
    statements = table_statements(database)
    comment = f"tidemark {blake2b(';'.join(statements).encode(), digest_size=8).hexdigest()}"
    with named_errors("making tables"):
        found = client.query(
            "SELECT name, comment FROM system.tables WHERE database = {database:String}",
            parameters={"database": database},
        ).result_rows
        made: dict[str, str] = dict(found)  # type: ignore[arg-type]
        if _all_made(statements, made, comment):
            return
        for statement in statements:
            is_view = _VIEW.match(statement) is not None
            client.command(f"{statement} COMMENT '{comment}'" if is_view else statement)


def _all_made(statements: list[str], made: dict[str, str], comment: str) -> bool:
    views = [view[1] for statement in statements if (view := _VIEW.match(statement))]
    tables = [table[1] for statement in statements if (table := _TABLE.match(statement))]
    return made.keys() >= set(tables) and all(made.get(view) == comment for view in views)


def table_statements(database: str) -> list[str]:
    """The statements of tables.sql for a database."""
    text = re.sub(r"--[^\n]*", "", TABLES_SQL.read_text())
    statements = (statement.strip() for statement in text.split(";"))
    return [statement.replace("{database}", database) for statement in statements if statement]


def known_settings(client: Client, settings: dict[str, str]) -> dict[str, str]:
    """Without the settings that this server is too old to have, which it would refuse."""
    return {name: value for name, value in settings.items() if name in client.server_settings}


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


def _first_line(error: Exception) -> str:
    """What went wrong, in a line: of a connection that failed, only where to and why."""
    address = _ADDRESS.search(str(error))
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    if address is None or cause is None:
        return str(error).strip().splitlines()[0][:500]
    return f"{address[1]} does not answer: {cause.strerror}"
