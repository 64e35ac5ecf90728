"""Opening the ledger: one SQLAlchemy engine a process, tables made when they are missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from orchestration.ledger.upgrade import bring_up_to_date

_READS = "tidemark_reads"

CLOCK_DIFFERENCE_US = 60_000_000
"""By how much the clocks of two hosts may differ: a time further ahead is not believed."""

_POSTGRESQL_PATIENCE = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # s, ms
"""After how long a server that does not answer counts as away, unless the URL says otherwise."""


def open_ledger(url: str) -> Engine:
    """An engine on the ledger, with its tables in place.

    SQLite runs in WAL mode with full fsync, writers queue for up to 30 s, and a transaction that
    may write takes the write lock at its start, so that a compare-and-swap never fails half-way.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=_patience(parsed))
        bring_up_to_date(engine)
        return engine

    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, poolclass=NullPool, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _configure(connection, _record) -> None:  # type: ignore[no-untyped-def]
        connection.isolation_level = None  # we say BEGIN ourselves, below
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection) -> None:  # type: ignore[no-untyped-def]
        reads = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    bring_up_to_date(engine)
    return engine


@contextmanager
def reading(ledger: Engine, *, snapshot: bool = False) -> Iterator[Connection]:
    """A transaction that only reads: it waits for no writer, and no writer waits for it.

    With `snapshot`, all that is read in it is of one moment; on SQLite it always is.
    """
    with ledger.connect() as connection:
        options: dict[str, object] = {_READS: True}
        if snapshot and ledger.dialect.name != "sqlite":
            options["isolation_level"] = "REPEATABLE READ"
        yield connection.execution_options(**options)


def _patience(url: URL) -> dict[str, int]:
    if url.get_driver_name() not in ("psycopg2", "psycopg"):
        return {}
    return {name: v for name, v in _POSTGRESQL_PATIENCE.items() if name not in url.query}


def is_of_a_wrong_clock(noted_at: int) -> bool:
    """Whether that was noted by a clock which was ahead, and not by another host's good one."""
    return noted_at > now_us() + CLOCK_DIFFERENCE_US


def now_us() -> int:
    """Microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000
