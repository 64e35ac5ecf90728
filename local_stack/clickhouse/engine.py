"""The owner of the data folder and of the engine in this process.

    Job ──▶ run(): a connection ──▶ prepare statements ──▶ the statement ──▶ Outcome

One connection runs one statement at a time (a second one on the same connection would never
return), so each job has a connection of its own; connections of one process share the engine and
its data. A connection costs less than a millisecond and takes with it, when it is closed, every
setting and temporary table made on it.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chdb

from local_stack.clickhouse.errors import StartError, from_engine
from local_stack.clickhouse.statement import quote

# What an embedded engine does otherwise than a server: "1 + 1" alone is no query there.
_LIKE_A_SERVER = b"SET implicit_select = 0, storage_file_read_method = 'pread'"


@dataclass(frozen=True)
class Job:
    """One statement, what has to be done on its connection before, and after it.

    `asked` is the statement as it was asked, where something had to be added to it.
    """

    text: bytes
    format: str
    query_id: str
    asked: bytes | None = None
    prepare: tuple[bytes, ...] = ()
    restore: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a statement did; `payload` is its answer, unless that went into a file."""

    payload: bytes
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int
    result_rows: int
    elapsed_ns: int


class Engine:
    """The engine over one folder, from open to close. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        # The engine takes these for patterns, and an INSERT from a file below would load nothing.
        if any(sign in str(folder) for sign in "?*{}"):
            raise StartError(f"the data folder's path must not contain any of ? * {{ }}: {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _own(folder)
        except OSError as error:
            raise StartError(
                f"cannot use {folder} ({error.strerror}): give another folder with --data"
            ) from None
        self.spool = folder / "spool"
        # What a killed process left there belongs to requests that were never answered.
        shutil.rmtree(self.spool, ignore_errors=True)
        self.spool.mkdir()
        self._path = str(folder / "engine")
        # Held until close: the engine lives as long as some connection does.
        try:
            self._base = chdb.connect(self._path)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise StartError(f"the engine cannot open {self._path}: {error}") from None
        about = self._base.query("SELECT version(), timezone(), displayName()", "TabSeparated")
        self.version, self.timezone, self.display_name = (
            about.bytes().decode().rstrip("\n").split("\t")
        )

    def connect(self) -> Any:
        """A connection of its own; close() it."""
        connection = chdb.connect(self._path)  # type: ignore[no-untyped-call]
        connection.query(_LIKE_A_SERVER, "Null")
        return connection

    def run(self, job: Job, connection: Any = None) -> Outcome:
        """Run the job to its end, on a connection of its own or on the one given."""
        own = connection if connection is not None else self.connect()
        try:
            return _run(own, job)
        except RuntimeError as error:
            raise from_engine(str(error).replace(trailer(job.query_id).decode(), "")) from None
        finally:
            if connection is None:
                own.close()

    def ask(self, text: str) -> list[list[str]]:
        """The rows of a short query of this server's own, as text."""
        connection = self.connect()
        try:
            answer = connection.query(text, "TabSeparated").bytes().decode()
        finally:
            connection.close()
        return [line.split("\t") for line in answer.splitlines()]

    def kill(self, query_id: str) -> None:
        """Ask the engine to stop a running statement; its run() then fails."""
        mark = quote("%" + trailer(query_id).decode().strip())
        self.ask(f"KILL QUERY WHERE query LIKE {mark} AND query NOT LIKE 'KILL %' ASYNC")

    def kill_all(self) -> None:
        """Ask the engine to stop everything that runs."""
        self.ask("KILL QUERY WHERE query NOT LIKE 'KILL %' ASYNC")

    def close(self) -> None:
        """Close the engine; no statement may be running."""
        self._base.close()
        os.close(self._lock)


def trailer(query_id: str) -> bytes:
    """The comment that makes a statement recognisable among the running ones."""
    return f"\n/* query_id: {query_id} */".encode()


def _run(connection: Any, job: Job) -> Outcome:
    began = time.perf_counter_ns()
    try:
        _each(connection, job.prepare)
        result = _query(connection, job)
        written, loaded = result.rows_written(), result.rows_read()
        return Outcome(
            payload=result.bytes(),
            # Rows read from a file are not counted as read from storage.
            read_rows=result.storage_rows_read() or (loaded if written else 0),
            read_bytes=result.storage_bytes_read() or (result.bytes_read() if written else 0),
            written_rows=written,
            written_bytes=result.bytes_written(),
            result_rows=result.rows_read(),
            elapsed_ns=time.perf_counter_ns() - began,
        )
    finally:
        _each(connection, job.restore)


def _query(connection: Any, job: Job) -> Any:
    try:
        return connection.query(job.text + trailer(job.query_id), job.format)
    except RuntimeError as error:
        # An unfinished query swallows what was added to it, and the message then speaks of that.
        if job.asked is not None and "(SYNTAX_ERROR)" in str(error):
            connection.query(job.asked, "Null")
        raise


def _each(connection: Any, statements: Sequence[bytes]) -> None:
    for statement in statements:
        connection.query(statement, "Null")


def _own(folder: Path) -> int:
    """Become the one process that has this folder open; the lock goes when the process does."""
    lock = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 32).decode().strip() or "unknown"
        os.close(lock)
        raise StartError(
            f"{folder} is in use by another ClickHouse (process {owner}): "
            "stop that one, or give another folder with --data"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
