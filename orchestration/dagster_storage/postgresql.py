"""Dagster's own PostgreSQL storage with connections that stay open.

Dagster opens a connection for nearly every statement, a hundred and more a run, each of which is a
process of the server. Here runs, events and ticks share a few in each process. One that the server
has closed meanwhile is noticed before it is used, and one whose server is gone without a word
within a minute while it is used. Of processes that are started together on an empty database one
makes the tables, and the others wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import create_pg_connection, set_pg_statement_timeout
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from orchestration.dagster_storage.connections import KeepsConnections

_KEPT_CONNECTIONS = 2  # by a process, beyond which they are closed after use
_KEPT_SECONDS = 300  # after which a connection is made anew
_MAKING_TABLES = 0x7469646D61726B
"""What is locked meanwhile: a number that nobody else locks in Dagster's database."""
_PATIENCE_S = 60
_SIGNS_OF_LIFE = {
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
"""Of libpq, which by the system's own would wait for hours; what the URL says goes before them."""

_log = logging.getLogger(__name__)


class _SharedEngine(KeepsConnections):
    """In the place of the engine that Dagster's class makes for itself, without a pool."""

    _engine: Engine

    def share(self, engine: Engine) -> None:
        """Use this engine from now on."""
        self._engine = engine

    def close_connections(self) -> None:
        """Close all that nobody uses just now."""
        self._engine.dispose()

    def optimize_for_webserver(
        self, statement_timeout: int, pool_recycle: int, max_overflow: int
    ) -> None:
        """Limit what a statement may take, on the engine that is shared and stays."""
        limit = _statement_limit(statement_timeout)
        if not event.contains(self._engine, "connect", limit):
            event.listen(self._engine, "connect", limit)
            self._engine.dispose()  # of connections without it

    def dispose(self) -> None:
        """Let go of everything."""
        super().dispose()  # type: ignore[misc]
        self.close_connections()


@cache
def _statement_limit(milliseconds: int) -> Callable[[Any, Any], None]:
    def limit(connection: Any, _record: Any) -> None:
        set_pg_statement_timeout(connection, milliseconds)

    return limit


class PostgresqlRuns(_SharedEngine, PostgresRunStorage):
    """Runs, tags, heartbeats."""


class PostgresqlEvents(_SharedEngine, PostgresEventLogStorage):
    """Events of runs, assets and checks."""


class PostgresqlSchedules(_SharedEngine, PostgresScheduleStorage):
    """Ticks."""


class PostgresqlStorage(DagsterPostgresStorage):
    """The three, over one engine."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        self.postgres_url = postgres_url
        self.should_autocreate_tables = True
        self._inst_data = inst_data
        said = make_url(postgres_url).query
        engine = create_engine(
            postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=_KEPT_CONNECTIONS,
            max_overflow=-1,
            pool_use_lifo=True,
            pool_pre_ping=True,
            pool_recycle=_KEPT_SECONDS,
            # What stands there goes before the URL.
            connect_args={name: n for name, n in _SIGNS_OF_LIFE.items() if name not in said},
        )
        with _one_at_a_time(engine):
            self._run_storage = PostgresqlRuns(postgres_url)
            self._event_log_storage = PostgresqlEvents(postgres_url)
            self._schedule_storage = PostgresqlSchedules(postgres_url)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage.share(engine)
        # Dagster's own would open its three first.
        super(DagsterPostgresStorage, self).__init__()  # type: ignore[no-untyped-call]


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[None]:
    """Hold off other processes, which would make the same tables.

    Until the transaction ends, also by this process's death. A holder that is gone without a word
    is not waited for longer than a minute: two that make tables try again, as Dagster has it.
    """
    with create_pg_connection(engine) as connection:
        held = connection.execution_options(isolation_level="READ COMMITTED")
        with held.begin():
            held.execute(text(f"SET LOCAL lock_timeout = '{_PATIENCE_S}s'"))
            try:
                held.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MAKING_TABLES})
            except OperationalError as error:
                _log.warning("Dagster's tables are looked at without a lock: %s", error.orig)
            yield
