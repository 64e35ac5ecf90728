"""Sessions: connections that outlive a request, for clients that say `session_id`.

A session gets a connection of its own only when a statement leaves something behind in it (SET,
USE, a temporary table): many clients name a session with every request and never use it. On such a
connection a request's own settings are put back after its statement, so that only what the
statement itself did remains.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from local_stack.clickhouse.engine import Engine
from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.statement import quote, quote_name


@dataclass
class _Kept:
    connection: Any
    until: float
    busy: bool = False


class Sessions:
    """The sessions that have something to remember. Used from the event loop's thread only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: dict[str, _Kept] = {}

    @contextmanager
    def use(self, session_id: str, seconds: int, *, remember: bool) -> Iterator[Any]:
        """The session's connection, or None where a fresh one does as well."""
        self._expire()
        kept = self._kept.get(session_id)
        if kept is None:
            if not (remember and session_id):
                yield None
                return
            kept = self._kept[session_id] = _Kept(self._engine.connect(), 0.0)
        if kept.busy:
            raise ClickHouseError(
                373, "SESSION_IS_LOCKED", f"Session {session_id} is locked by a concurrent client"
            )
        kept.busy = True
        try:
            yield kept.connection
        finally:
            kept.busy = False
            kept.until = time.monotonic() + seconds

    def close(self) -> None:
        """Close every connection that is kept."""
        for kept in self._kept.values():
            kept.connection.close()
        self._kept.clear()

    def _expire(self) -> None:
        now = time.monotonic()
        gone = [name for name, kept in self._kept.items() if not kept.busy and kept.until < now]
        for name in gone:
            self._kept.pop(name).connection.close()


def undo(connection: Any, settings: Iterable[str], *, database: bool) -> tuple[bytes, ...]:
    """The statements that put a connection's settings, and its database, back as they are."""
    statements = []
    names = ", ".join(quote(name) for name in settings)
    if names:
        query = f"SELECT name, value, changed FROM system.settings WHERE name IN ({names})"
        for line in connection.query(query, "JSONCompactEachRow").bytes().decode().splitlines():
            name, value, changed = json.loads(line)
            before = quote(value) if changed else "DEFAULT"
            statements.append(f"SET {name} = {before}".encode())
    if database:
        current = connection.query("SELECT currentDatabase()", "TabSeparatedRaw").bytes().decode()
        statements.append(f"USE {quote_name(current.rstrip(chr(10)))}".encode())
    return tuple(statements)
