"""Dagster's own PostgreSQL storage with connections that stay open.

Dagster opens a connection for nearly every statement, a hundred and more a run, each of which is a
process of the server. Here runs, events and ticks share a few in each process. One that the server
has closed meanwhile is noticed before it is used.
"""

from __future__ import annotations

from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from sqlalchemy import Engine, create_engine

from orchestration.dagster_storage.connections import KeepsConnections

_KEPT_CONNECTIONS = 2  # by a process, beyond which they are closed after use


class _SharedEngine(KeepsConnections):
    """In the place of the engine that Dagster's class makes for itself, without a pool."""

    _engine: Engine

    def share(self, engine: Engine) -> None:
        """Use this engine from now on."""
        self._engine = engine

    def close_connections(self) -> None:
        """Close all that nobody uses just now."""
        self._engine.dispose()

    def dispose(self) -> None:
        """Let go of everything."""
        super().dispose()  # type: ignore[misc]
        self.close_connections()


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
        self._run_storage = PostgresqlRuns(postgres_url)
        self._event_log_storage = PostgresqlEvents(postgres_url)
        self._schedule_storage = PostgresqlSchedules(postgres_url)
        engine = create_engine(
            postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=_KEPT_CONNECTIONS,
            max_overflow=-1,
            pool_use_lifo=True,
            pool_pre_ping=True,
        )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage.share(engine)
        # Dagster's own would open its three first.
        super(DagsterPostgresStorage, self).__init__()  # type: ignore[no-untyped-call]
