"""Processes that outlive the command that started them: start, watch, stop.

Data flow: a `Service` (what to run, when it is ready) → `start` → a process in a session of its own
with `home/logs/<name>.log` and `home/run/<name>.json` → `wait_ready`, `running`, `stop`.
Invariant: a signal goes only to a process whose pid and start time are the recorded ones, or that
carries the record's mark in its environment: a recycled pid is never hit.
Whoever starts or stops holds `locked(home)`; `Foreground` holds it for as long as it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Literal, NoReturn, Self

HOST = "127.0.0.1"
STOP_LIMIT_S = 20.0
KILL_LIMIT_S = 5.0
LOCK_LIMIT_S = 0.5  # somebody may only be asking who holds it
POLL_PAUSE_S = 0.05
WATCH_PAUSE_S = 0.25
LOG_LIMIT_BYTES = 10 * 1024 * 1024  # a longer log is set aside at the next start
TAIL_BYTES = 16 * 1024
TAIL_LINES = 15
PORTS_TRIED = 100
MARK_VARIABLE = "TIDEMARK_SERVICE_MARK"
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Children of this very process: they have to be reaped, or they would look alive.
_children: dict[int, subprocess.Popen[bytes]] = {}

Outcome = Literal["stopped", "killed", "was not running"]


class StackError(Exception):
    """Something that a person can put right; the text is one line, a log's end may follow."""


class PortTaken(StackError):
    """A port that a service needs is not free."""


class AlreadyRunning(StackError):
    """A service, or a command on the same home, runs already."""


class ServiceFailed(StackError):
    """A service died, or was not ready in time; its log's last lines are in the text."""


@dataclass(frozen=True)
class Port:
    """A port a service listens on, and the setting that moves it."""

    number: int
    setting: str


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


def log_path(home: Path, name: str) -> Path:
    """The log file of a service."""
    return home / "logs" / f"{name}.log"


@contextlib.contextmanager
def locked(home: Path, purpose: str = "tidemark") -> Iterator[None]:
    """Hold the home for one command; AlreadyRunning names the one that holds it now."""
    path = home / "run" / "stack.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _flock(file, LOCK_LIMIT_S):
            file.seek(0)
            holder = file.read().strip() or "another command"
            names = ", ".join(record.name for record in running(home)) or "nothing yet"
            raise AlreadyRunning(
                f"{holder} works on {home.absolute()} (running: {names}): wait for it, or stop it"
            )
        file.truncate(0)
        file.write(f"{purpose} (pid {os.getpid()})")
        file.flush()
        yield
        file.truncate(0)


def lock_holder(home: Path) -> int | None:
    """The pid of the command that holds the home now, if one does."""
    try:
        with (home / "run" / "stack.lock").open("r+") as file:
            if _flock(file, 0):
                return None
            _, _, tail = file.read().rpartition("(pid ")
            return int(tail.rstrip(")")) if tail else None
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
        with _signals_held():
            child = subprocess.Popen(
                service.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **service.env, MARK_VARIABLE: record.mark},
                cwd=service.cwd,
                start_new_session=True,
                preexec_fn=_reset_signals,
            )
            _children[child.pid] = child
            entry = _processes(child.pid).get(child.pid)
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


def start_all(services: Iterable[Service], home: Path, limit_s: float) -> list[Record]:
    """Start each service once the one before it is ready; if one fails, stop those again."""
    started: list[Record] = []
    try:
        for service in services:
            started.append(start(service, home))
            wait_ready(service, home, limit_s)
    except BaseException:
        for record in reversed(started):
            stop(record.name, home)
        raise
    return started


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
            left = ", ".join(str(pid) for pid in _still_there(known))
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


class Foreground:
    """A stack that ends with this process: at the block's end, on Ctrl-C, SIGTERM and SIGHUP."""

    def __init__(self, home: Path, purpose: str = "tidemark") -> None:
        self._home = home
        self._purpose = purpose
        self._names: list[str] = []
        self._exits = contextlib.ExitStack()  # undone in reverse: services, handlers, lock

    def __enter__(self) -> Self:
        self._exits.enter_context(locked(self._home, self._purpose))
        if threading.current_thread() is threading.main_thread():
            for number in ENDING_SIGNALS:
                before = signal.getsignal(number)
                if number != signal.SIGHUP or before != signal.SIG_IGN:  # nohup stays nohup
                    signal.signal(number, _leave)
                    self._exits.callback(signal.signal, number, before)
        return self

    def start(self, service: Service, limit_s: float) -> Record:
        """Start the service and wait until it is ready."""
        if any(record.name == service.name for record in running(self._home)):
            return start(service, self._home)  # raises: it is not ours to stop
        self._exits.callback(stop, service.name, self._home)
        record = start(service, self._home)
        self._names.append(service.name)
        wait_ready(service, self._home, limit_s)
        return record

    def wait(self) -> NoReturn:
        """Watch until a signal ends this process; ServiceFailed when a service dies."""
        while True:
            for name in self._names:
                record = _read(self._home, name)
                if record is None:
                    raise ServiceFailed(f"{name} was stopped by another command")
                if not _is_alive(record):
                    raise ServiceFailed(_obituary(record))
            time.sleep(WATCH_PAUSE_S)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A second Ctrl-C must not leave half a stack behind.
        with _signals_held():
            self._exits.close()


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


def require_port_free(number: int, setting: str) -> None:
    """PortTaken unless a server could listen on this port of the loopback address now."""
    reason = _bind_error(number)
    if reason is None:
        return
    if reason != errno.EADDRINUSE:
        raise PortTaken(
            f"port {number} cannot be used ({os.strerror(reason)}): set {setting} to another"
        )
    holder = port_holder(number)
    by = f" (by {holder})" if holder else ""
    raise PortTaken(f"port {number} is taken{by}: set {setting} to a free one")


def free_port(preferred: int) -> int:
    """The first free port from `preferred` on, or any that is free."""
    for number in range(preferred, min(preferred + PORTS_TRIED, 65536)):
        if _bind_error(number) is None:
            return number
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def port_holder(number: int) -> str | None:
    """Who listens on a port, as "pid N name", as far as this user may know."""
    if sys.platform == "linux":
        return _port_holder_linux(number)
    if shutil.which("lsof") is None:
        return None
    argv = ["lsof", "-nP", f"-iTCP:{number}", "-sTCP:LISTEN", "-Fpc"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    found = {line[0]: line[1:] for line in reversed(lines) if line}
    return f"pid {found['p']} {found.get('c', '')}".rstrip() if "p" in found else None


def _bind_error(number: int) -> int | None:
    with socket.socket() as probe:
        # As servers do: a closed connection that lingers does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
        except OSError as error:
            return error.errno
    return None


def _port_holder_linux(number: int) -> str | None:
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == number:
                    sockets.add(f"socket:[{words[9]}]")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                return f"pid {folder.name} {(folder / 'comm').read_text().strip()}"
    return None


@dataclass(frozen=True)
class _Process:
    group: int
    born: str
    dying: bool = False  # killed, while its threads still hold its ports


def _processes(only: int | None = None) -> dict[int, _Process]:
    """The processes that hold anything (a zombie does not) by pid; all of them, or one."""
    if sys.platform != "linux":
        choice = ["-p", str(only)] if only is not None else ["-ax"]
        argv = ["ps", *choice, "-o", "pid=,pgid=,stat=,lstart="]
        text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        rows = [line.split(None, 3) for line in text.splitlines()]
        return {int(r[0]): _Process(int(r[1]), r[3]) for r in rows if not r[2].startswith("Z")}
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = {}
    for folder in Path("/proc").glob("[0-9]*" if only is None else str(only)):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; from the state on the fields are fixed.
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            state, group, threads, born = words[0], int(words[2]), int(words[17]), words[19]
            if state not in "ZX" or threads > 1:
                found[int(folder.name)] = _Process(group, f"{boot}:{born}", state in "ZX")
    return found


def _reap() -> None:
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def _is_alive(record: Record) -> bool:
    entry = _processes(record.pid).get(record.pid)
    return entry is not None and entry.born == record.born and not entry.dying


def _members(record: Record) -> dict[int, _Process]:
    """The leader's group while the leader lives, and (Linux) whatever carries the mark."""
    table = _processes()
    leader = table.get(record.pid)
    led = leader is not None and leader.born == record.born
    return {
        pid: entry
        for pid, entry in table.items()
        if (led and entry.group == record.pid) or _has_mark(pid, record.mark)
    }


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return f"{MARK_VARIABLE}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _still_there(known: Mapping[int, _Process]) -> list[int]:
    _reap()
    table = _processes()
    return [pid for pid, entry in known.items() if pid in table and table[pid].born == entry.born]


def _signal(record: Record, known: Mapping[int, _Process], number: int) -> None:
    there = _still_there(known)
    if record.pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, number)  # reaches what was forked a moment ago, too
        there = [pid for pid in there if known[pid].group != record.pid]
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _await_end(record: Record, known: dict[int, _Process], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while True:
        known.update(_members(record))  # a dying service may still start helpers
        if not _still_there(known):
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_PAUSE_S)


def _obituary(record: Record) -> str:
    child = _children.get(record.pid)
    code = child.poll() if child is not None else None
    how = "" if code is None else f" with exit code {code}" if code >= 0 else f" by signal {-code}"
    return f"{record.name} ended{how} (log: {record.log}){_log_end(record)}"


def _log_end(record: Record) -> str:
    with Path(record.log).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(record.log_start, size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    return "".join(f"\n    {line}" for line in lines)


def _read(home: Path, name: str) -> Record | None:
    try:
        return Record(**json.loads((home / "run" / f"{name}.json").read_text()))
    except FileNotFoundError:
        return None


def _write(home: Path, record: Record) -> None:
    path = home / "run" / f"{record.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.new")
    draft.write_text(json.dumps(asdict(record), indent=2) + "\n")
    draft.replace(path)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Put off what would end this process, so that what is begun is also written down."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reset_signals() -> None:
    """In the child: a shell may have ignored signals for us, and a service must hear them all."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
