"""Processes that outlive the command that started them: start, watch, stop.

Data flow: a `Service` (what to run, when it is ready) → `start` → a process in a session of its own
with `home/logs/<name>.log` and `home/run/<name>.json` → `wait_ready`, `running`, `stop`.
Invariant: a signal goes only to a process whose pid and start time are the recorded ones, or that
carries the record's mark in its environment: a recycled pid is never hit.
Whoever starts or stops holds `locked(home)`; `Foreground` holds it for as long as it lives, and
`stop_foreground` ends it from another process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, NoReturn, Self

from local_stack import process_table, signals
from local_stack.errors import StackError
from local_stack.ports import Port, require_port_free
from local_stack.process_table import Entry

STOP_LIMIT_S = 20.0
KILL_LIMIT_S = 5.0
FOREGROUND_LIMIT_S = 120.0  # it stops its services one after the other
LOCK_LIMIT_S = 0.5  # somebody may only be asking who holds it
POLL_PAUSE_S = 0.05
WATCH_PAUSE_S = 0.25
LOG_LIMIT_BYTES = 10 * 1024 * 1024  # a longer log is set aside at the next start
TAIL_BYTES = 16 * 1024
TAIL_LINES = 15
MARK_VARIABLE = "TIDEMARK_SERVICE_MARK"

Outcome = Literal["stopped", "killed", "was not running"]


class AlreadyRunning(StackError):
    """A service, or a command on the same home, runs already."""


class ServiceFailed(StackError):
    """A service died, or was not ready in time; its log's last lines are in the text."""


@dataclass(frozen=True)
class Service:
    """What to run. `ready` returns None when the service serves, else the reason why not."""

    name: str
    argv: Sequence[str]
    ready: Callable[[], str | None]
    env: Mapping[str, str] = field(default_factory=dict)  # added to this process's own
    ports: Sequence[Port] = ()
    cwd: Path | None = None


@dataclass(frozen=True)
class Record:
    """What `home/run/<name>.json` keeps about one started process."""

    name: str
    pid: int  # also its process group; 0 while it is being started
    born: str  # its start time, as the operating system tells it
    mark: str
    argv: list[str]
    ports: list[int]
    log: str
    log_start: int  # where in the log this start's lines begin
    started_at: str


@dataclass(frozen=True)
class Holder:
    """The command that works on a home: what `home/run/stack.lock` says while it is held."""

    purpose: str
    pid: int
    born: str
    foreground: bool  # the services end when it does

    def __str__(self) -> str:
        return f"{self.purpose} (pid {self.pid})"


def log_path(home: Path, name: str) -> Path:
    """The log file of a service."""
    return home / "logs" / f"{name}.log"


@contextlib.contextmanager
def locked(home: Path, purpose: str = "tidemark", foreground: bool = False) -> Iterator[None]:
    """Hold the home for one command; AlreadyRunning names the one that holds it now."""
    with _open_lock(home) as file:
        if not _flock(file, LOCK_LIMIT_S):
            holder = _read_holder(file) or "another command"
            names = ", ".join(record.name for record in running(home)) or "nothing yet"
            raise AlreadyRunning(
                f"{holder} works on {home.absolute()} (running: {names}): wait for it, or stop it"
            )
        if not _is_at(file, home):
            raise AlreadyRunning(f"another command has just removed {home}: try again")
        entry = process_table.process(os.getpid())
        born = entry.born if entry else "gone"
        file.truncate(0)
        file.write(json.dumps(asdict(Holder(purpose, os.getpid(), born, foreground))))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock_holder(home: Path) -> Holder | None:
    """The command that holds the home now, if one does."""
    try:
        with (home / "run" / "stack.lock").open("r+") as file:
            return None if _flock(file, 0) else _read_holder(file)
    except FileNotFoundError:
        return None


def start(service: Service, home: Path) -> Record:
    """Launch the service detached: it lives on when this process ends. It may not be ready yet."""
    old = _read(home, service.name)
    if old is not None:
        if _is_alive(old):
            where = "".join(f", port {port}" for port in old.ports)
            raise AlreadyRunning(
                f"{service.name} runs already (pid {old.pid}{where}, since {old.started_at})"
            )
        stop(service.name, home)  # what a dead leader left behind may hold the port
    for port in service.ports:
        require_port_free(port.number, port.setting)
    log = log_path(home, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        record = Record(
            name=service.name,
            pid=0,
            born="",
            mark=uuid.uuid4().hex,
            argv=list(service.argv),
            ports=[port.number for port in service.ports],
            log=str(log.absolute()),
            log_start=output.tell(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        # Written before the process exists: if this process is killed in between, its mark
        # still finds the other.
        _write(home, record)
        with signals.held():
            child = subprocess.Popen(
                service.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **service.env, MARK_VARIABLE: record.mark},
                cwd=service.cwd,
                start_new_session=True,
                preexec_fn=signals.reset,
            )
            process_table.adopt(child)
            entry = process_table.process(child.pid)
            record = replace(record, pid=child.pid, born=entry.born if entry else "gone")
            _write(home, record)
    return record


def wait_ready(service: Service, home: Path, limit_s: float) -> None:
    """Return when the service is ready; ServiceFailed when it dies first or takes too long."""
    end = time.monotonic() + limit_s
    while True:
        record = _read(home, service.name)
        if record is None:
            raise ServiceFailed(f"{service.name} was stopped before it was ready")
        if not _is_alive(record):
            raise ServiceFailed(_obituary(record))
        reason = service.ready()
        if reason is None:
            return
        if time.monotonic() >= end:
            raise ServiceFailed(
                f"{service.name} is not ready after {limit_s:.0f} s: {reason}{_log_end(record)}"
            )
        time.sleep(POLL_PAUSE_S)


def stop(name: str, home: Path, limit_s: float = STOP_LIMIT_S) -> Outcome:
    """SIGTERM to the service's process group, SIGKILL to what is left after `limit_s`."""
    record = _read(home, name)
    if record is None:
        return "was not running"
    known = _members(record)
    outcome: Outcome = "stopped" if known else "was not running"
    _signal(record, known, signal.SIGTERM)
    if not _await_end(record, known, limit_s):
        outcome = "killed"
        _signal(record, known, signal.SIGKILL)
        if not _await_end(record, known, KILL_LIMIT_S):
            left = ", ".join(str(pid) for pid in process_table.still_there(known))
            raise StackError(f"{name} cannot be killed (pid {left}): look at it with ps")
    (home / "run" / f"{name}.json").unlink(missing_ok=True)
    return outcome


def stop_all(home: Path, limit_s: float = STOP_LIMIT_S) -> dict[str, Outcome]:
    """Stop every recorded service, the last started first."""
    records = sorted(recorded(home), key=lambda record: record.started_at, reverse=True)
    return {record.name: stop(record.name, home, limit_s) for record in records}


def recorded(home: Path) -> list[Record]:
    """Every service that was started and not stopped, dead ones too, the first started first."""
    names = [path.stem for path in (home / "run").glob("*.json")]
    records = [record for name in names if (record := _read(home, name)) is not None]
    return sorted(records, key=lambda record: (record.started_at, record.name))


def running(home: Path) -> list[Record]:
    """The services whose process lives now."""
    return [record for record in recorded(home) if _is_alive(record)]


def died(home: Path) -> list[Record]:
    """The services that were started, were not stopped, and are gone."""
    return [record for record in recorded(home) if record.pid and not _is_alive(record)]


class Foreground:
    """A stack that ends with this process: at the block's end, on Ctrl-C, SIGTERM and SIGHUP."""

    def __init__(self, home: Path, purpose: str = "tidemark") -> None:
        self._home = home
        self._purpose = purpose
        self._names: list[str] = []
        self._exits = contextlib.ExitStack()  # undone in reverse: services, handlers, lock

    def __enter__(self) -> Self:
        self._exits.enter_context(locked(self._home, self._purpose, foreground=True))
        self._exits.enter_context(signals.leaving())
        return self

    def launch(self, service: Service) -> Record:
        """Start the service, to be stopped at the block's end. It may not be ready yet."""
        if any(record.name == service.name for record in running(self._home)):
            return start(service, self._home)  # raises: it is not ours to stop
        self._exits.callback(stop, service.name, self._home)
        record = start(service, self._home)
        self._names.append(service.name)
        return record

    def wait_ready(self, service: Service, limit_s: float) -> None:
        """Return when the service is ready; ServiceFailed at once when any of them dies."""

        def ready() -> str | None:
            self._require_all_alive()
            return service.ready()

        wait_ready(replace(service, ready=ready), self._home, limit_s)

    def wait(self) -> NoReturn:
        """Watch until a signal ends this process; ServiceFailed when a service dies."""
        while True:
            self._require_all_alive()
            time.sleep(WATCH_PAUSE_S)

    def _require_all_alive(self) -> None:
        for name in self._names:
            record = _read(self._home, name)
            if record is None:
                raise ServiceFailed(f"{name} was stopped by another command")
            if not _is_alive(record):
                raise ServiceFailed(_obituary(record))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave half a stack behind.
        with signals.held():
            self._exits.close()


def stop_foreground(home: Path, limit_s: float = FOREGROUND_LIMIT_S) -> Holder | None:
    """End the process whose `Foreground` holds the home, and wait until it and all it ran is gone.

    Returns what was ended, None when no `Foreground` holds the home. Not to be called under
    `locked(home)`.
    """
    holder = lock_holder(home)
    if holder is None or not holder.foreground:
        return None
    end = time.monotonic() + limit_s
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder.pid, signal.SIGTERM)
    while process_table.lives(holder.pid, holder.born):
        if time.monotonic() >= end:
            raise StackError(
                f"{holder} does not end: `kill -9 {holder.pid}`, then `tidemark down` again"
            )
        time.sleep(POLL_PAUSE_S)
    return holder


def _flock(file: IO[str], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_PAUSE_S)


def _open_lock(home: Path) -> IO[str]:
    path = home / "run" / "stack.lock"
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its holder moved the home away meanwhile
            return path.open("a+")


def _is_at(file: IO[str], home: Path) -> bool:
    """Whether the lock that was waited for is still the home's own."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), (home / "run" / "stack.lock").stat())
    except FileNotFoundError:
        return False


def _read_holder(file: IO[str]) -> Holder | None:
    """What the lock says, unless its last holder was killed and the next has not written yet."""
    file.seek(0)
    text = file.read()
    try:
        holder = Holder(**json.loads(text)) if text else None
    except ValueError:  # half written
        return None
    return holder if holder and process_table.lives(holder.pid, holder.born) else None


def _is_alive(record: Record) -> bool:
    return process_table.lives(record.pid, record.born)


def _members(record: Record) -> dict[int, Entry]:
    """The leader's group while the leader lives, and (Linux) whatever carries the mark."""
    table = process_table.processes()
    leader = table.get(record.pid)
    led = leader is not None and leader.born == record.born
    mark = f"{MARK_VARIABLE}={record.mark}"
    return {
        pid: entry
        for pid, entry in table.items()
        if (led and entry.group == record.pid) or process_table.has_in_environment(pid, mark)
    }


def _signal(record: Record, known: Mapping[int, Entry], number: int) -> None:
    there = process_table.still_there(known)
    if record.pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, number)  # reaches what was forked a moment ago, too
        there = [pid for pid in there if known[pid].group != record.pid]
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _await_end(record: Record, known: dict[int, Entry], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while True:
        known.update(_members(record))  # a dying service may still start helpers
        if not process_table.still_there(known):
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_PAUSE_S)


def _obituary(record: Record) -> str:
    code = process_table.exit_code(record.pid)
    how = "" if code is None else f" with exit code {code}" if code >= 0 else f" by signal {-code}"
    return f"{record.name} ended{how} (log: {record.log}){_log_end(record)}"


def _log_end(record: Record) -> str:
    with Path(record.log).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(record.log_start, size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    return "".join(f"\n    {line}" for line in lines)


def _read(home: Path, name: str) -> Record | None:
    path = home / "run" / f"{name}.json"
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise StackError(
            f"{path} is damaged: stop {name}, if `ps` shows that it runs, and delete the file"
        ) from None


def _write(home: Path, record: Record) -> None:
    path = home / "run" / f"{record.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.new")
    draft.write_text(json.dumps(asdict(record), indent=2) + "\n")
    draft.replace(path)
