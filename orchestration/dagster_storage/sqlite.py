"""Dagster's own SQLite storage with connections that stay open: the same files, less work a run.

    <base>/history/runs.db             runs, tags, heartbeats
    <base>/history/runs/index.db       events of assets and checks, over all runs
    <base>/history/runs/<run id>.db    the events of a run
    <base>/schedules/schedules.db      ticks

Dagster opens an engine for each statement, compiles the statement anew, has SQLite fold the WAL
back into the file when the connection closes, and has Alembic read its migrations for the database
of each run. Here a process keeps a connection to each file, and what is compiled, and a run's
database begins as a copy of an empty one.

Another process may use Dagster's own classes on the same files at the same time. A commit reaches
the disk with the next checkpoint: after a power cut Dagster's newest events may be missing, no file
is damaged, and the ledger, which decides, is not in it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

from dagster import DagsterInstance
from dagster._core.event_api import EventHandlerFn
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    INDEX_SHARD_NAME,
    SqliteEventLogStorage,
    SqliteEventLogStorageWatchdog,
)
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sqlite import create_db_conn_string
from dagster._core.storage.sqlite_storage import (
    DagsterSqliteStorage,
    SqliteStorageConfig,
    _event_logs_directory,
    _runs_directory,
    _schedule_directory,
)
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import LRUCache
from watchdog.events import FileSystemEvent
from watchdog.observers import Observer

from orchestration.dagster_storage.connections import KeepsConnections

_BUSY_LIMIT_S = 30.0
_KEPT_CONNECTIONS = 2  # to one file, beyond which they are closed after use
_COMPILED = 1_000  # statements
_KEPT_RUNS = 4  # whose databases stay open; a run's own process needs one

_known: set[Path] = set()  # files that have their tables


class _OneEngine(KeepsConnections):
    """In the place of an engine for each statement."""

    _file: ClassVar[str]

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._built: set[str] = set()
        self._engine = _shared_engine(conn_string)
        super().__init__(conn_string, inst_data)  # type: ignore[call-arg]

    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> Self:
        """Open it, with its tables in place; that they are is looked at once in a process."""
        path = Path(base_dir) / cls._file
        if path not in _known or not path.exists():
            made: Self = super().from_local(base_dir, inst_data)  # type: ignore[misc]
            made.close_connections()  # to a file that was there before, and is gone
            _known.add(path)
            return made
        return cls(create_db_conn_string(base_dir, path.stem), inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A transaction."""
        with self._engine.begin() as connection:
            yield connection

    def has_built_index(self, migration_name: str) -> bool:
        """Whether a change of the data was made; once it was, it is not asked for again."""
        if migration_name not in self._built:
            if not super().has_built_index(migration_name):  # type: ignore[misc]
                return False
            self._built.add(migration_name)
        return True

    def close_connections(self) -> None:
        """Close all that nobody uses just now."""
        self._engine.dispose()

    def dispose(self) -> None:
        """Let go of everything."""
        super().dispose()  # type: ignore[misc]
        self.close_connections()


class SqliteRuns(_OneEngine, SqliteRunStorage):
    """Runs, tags, heartbeats."""

    _file = "runs.db"


class SqliteSchedules(_OneEngine, SqliteScheduleStorage):
    """Ticks."""

    _file = "schedules.db"


class SqliteEvents(KeepsConnections, SqliteEventLogStorage):
    """Events, over one engine for the index and one for each run that was last used."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._index = _shared_engine(create_db_conn_string(base_dir, INDEX_SHARD_NAME))
        self._runs: OrderedDict[str, Engine] = OrderedDict()
        self._built: set[str] = set()
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            if shard not in self._initialized_dbs:
                self._prepare(shard)
                self._initialized_dbs.add(shard)
            with self._engine(shard).begin() as connection:
                yield connection

    def _engine(self, shard: str) -> Engine:
        if shard == INDEX_SHARD_NAME:
            return self._index
        if shard not in self._runs:
            self._runs[shard] = _engine(self.conn_string_for_shard(shard))
        self._runs.move_to_end(shard)
        if len(self._runs) > _KEPT_RUNS:
            self._runs.popitem(last=False)[1].dispose()
        return self._runs[shard]

    def _prepare(self, shard: str) -> None:
        path = Path(self.path_for_shard(shard))
        if not path.exists():
            # Another host may have a process of the same number.
            draft = path.with_name(f".{shard}.{uuid4().hex}.new")
            try:
                draft.write_bytes(_empty_database())
                os.link(draft, path)
            except FileExistsError:
                pass  # another process was first
            except OSError:  # there are no links in this file system, or no room
                self._initdb(self._engine(shard))
            finally:
                draft.unlink(missing_ok=True)
        elif not _is_stamped(path):
            self._initdb(self._engine(shard))

    def watch(self, run_id: str, cursor: str | None, callback: EventHandlerFn) -> None:
        """Call back when a run has said something."""
        observer: Any = self._obs
        if observer is None:
            observer = Observer()
            observer.start()
            self._obs = observer
        handler = _Watchdog(self, run_id, callback, cursor)
        watched = observer.schedule(handler, self._base_dir, recursive=True)
        self._watchers[run_id][callback] = (handler, watched)

    def has_secondary_index(self, name: str) -> bool:
        """Whether a change of the data was made; once it was, it is not asked for again."""
        if name not in self._built:
            if not super().has_secondary_index(name):
                return False
            self._built.add(name)
        return True

    def wipe(self) -> None:
        """Delete everything."""
        self._built.clear()
        self.close_connections()
        super().wipe()

    def close_connections(self) -> None:
        """Close all; nobody else uses one while the lock is held."""
        with self._db_lock:
            self._index.dispose()
            while self._runs:
                self._runs.popitem()[1].dispose()

    def dispose(self) -> None:
        """Let go of everything."""
        super().dispose()
        self.close_connections()


class _Watchdog(SqliteEventLogStorageWatchdog):
    """Looks at the WAL as well: the file itself changes only now and then."""

    @property
    def patterns(self) -> list[str]:
        """The files whose change means that there is something new."""
        return [self._log_path, f"{self._log_path}-wal"]

    def on_modified(self, event: FileSystemEvent) -> None:
        """Read what is new."""
        self._process_log()


class SqliteStorage(DagsterSqliteStorage):
    """The three together."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self.base_dir = base_dir
        self._inst_data = inst_data
        self._run_storage = SqliteRuns.from_local(_runs_directory(base_dir))
        self._event_log_storage = SqliteEvents(_event_logs_directory(base_dir))
        self._schedule_storage = SqliteSchedules.from_local(_schedule_directory(base_dir))
        # Dagster's own would open its three first.
        super(DagsterSqliteStorage, self).__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData, config_value: SqliteStorageConfig
    ) -> DagsterStorage[DagsterInstance]:
        """As Dagster makes it from dagster.yaml."""
        return cls.from_local(inst_data=inst_data, **config_value)


@cache
def _dialect() -> Dialect:
    """One for all engines: what is compiled for one is then good for the others."""
    engine = create_engine("sqlite://")
    with engine.connect():  # or it knows nothing of the SQLite it speaks to
        return engine.dialect


@cache
def _compiled() -> LRUCache[Any, Any]:
    return LRUCache(_COMPILED)


@cache
def _shared_engine(conn_string: str) -> Engine:
    """One for all instances that the process opens: a sensor opens one at each tick."""
    return _engine(conn_string)


def _engine(conn_string: str) -> Engine:
    url = make_url(conn_string)
    pool = QueuePool(
        partial(_open, str(url.database)),
        pool_size=_KEPT_CONNECTIONS,
        max_overflow=-1,
        use_lifo=True,
        dialect=_dialect(),
    )
    return Engine(pool, _dialect(), url).execution_options(compiled_cache=_compiled())


def _open(path: str) -> Any:
    connection = sqlite3.connect(path, timeout=_BUSY_LIMIT_S, check_same_thread=False)
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _is_stamped(path: Path) -> bool:
    """Whether the database has its tables, and not just its file."""
    with contextlib.closing(_open(str(path))) as connection:
        with contextlib.suppress(sqlite3.OperationalError):
            return connection.execute("SELECT 1 FROM alembic_version").fetchone() is not None
    return False


@cache
def _empty_database() -> bytes:
    """The database of a run that has said nothing yet, as Dagster makes it."""
    with tempfile.TemporaryDirectory() as folder:
        storage = SqliteEventLogStorage(folder)
        with storage.run_connection("empty"):
            pass
        return Path(storage.path_for_shard("empty")).read_bytes()
