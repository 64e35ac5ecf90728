"""Opening the ledger: one SQLAlchemy engine a process, tables made when they are missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from orchestration.ledger.tables import metadata

_READS = "tidemark_reads"


def open_ledger(url: str) -> Engine:
    """An engine on the ledger, with its tables in place.

    SQLite runs in WAL mode with full fsync, writers queue for up to 30 s, and a transaction that
    may write takes the write lock at its start, so that a compare-and-swap never fails half-way.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_pre_ping=True)
        metadata.create_all(engine)
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

    metadata.create_all(engine)
    return engine


@contextmanager
def reading(ledger: Engine) -> Iterator[Connection]:
    """A transaction that only reads: it waits for no writer, and no writer waits for it."""
    with ledger.connect() as connection:
        yield connection.execution_options(**{_READS: True})


def now_us() -> int:
    """Microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000
