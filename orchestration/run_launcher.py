"""The run launcher: a run is forked from a process that has the code imported already.

    daemon or webserver ── WarmRunLauncher ──▶ run_forker (one for each code location) ──▶ runs

`dagster.yaml` names it. Anything it cannot do it leaves to Dagster's default launcher, of which it
is one: a code server on another machine, a system without pidfd, a forker that does not come up
(said in one log line, and tried again after a pause).
Invariant: a run is handed to the default launcher only if it is certain that no forked process has
it, so it is never begun twice.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Self

from dagster import DagsterRun
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import (
    CheckRunHealthResult,
    LaunchRunContext,
    WorkerStatus,
)
from dagster._core.origin import JobPythonOrigin
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._serdes import serialize_value
from dagster._serdes.config_class import ConfigurableClassData
from pydantic import ValidationError
from pydantic_settings import SettingsError

from orchestration.lost_runs import worker_of
from orchestration.run_forker import FORKED, MESSAGE_BYTES, READY, STALE
from orchestration.settings import SETTINGS_FILE
from orchestration.settings_in_force import settings_in_force
from orchestration.settings_trouble import sentences

_START_LIMIT_S = 120.0  # imports on a busy machine
_ANSWER_LIMIT_S = 60.0
_TRIES = 3
_PAUSE_S = 60.0  # between tries at a forker that does not come up

_log = logging.getLogger("dagster.run_launcher")


class CannotFork(Exception):
    """No forked process has the run, or will have it; the text says why."""


class _Answer(Enum):
    STARTED = auto()
    STALE = auto()


class WarmProcess:
    """A forker, as its launcher sees it."""

    def __init__(self, origin: JobPythonOrigin, instance: str, watched: list[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        with theirs:
            self._process = subprocess.Popen(
                [origin.executable_path, "-m", "orchestration.run_forker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A pool of threads of which no run has ever asked anything.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        order = {"origin": serialize_value(origin), "instance": instance, "watched": watched}
        self._control.settimeout(_START_LIMIT_S)
        try:
            self._control.send(json.dumps(order).encode())
            said = self._control.recv(MESSAGE_BYTES).decode()
        except OSError as error:
            said = str(error)
        if said != READY:
            self._process.kill()
            self.let_go()
            self._process.wait()
            raise CannotFork(said or "it ended before it was ready")

    def start_run(self, run_id: str) -> _Answer:
        """Have the run forked. Raises CannotFork when it was not."""
        reading, writing = os.pipe()
        try:
            try:
                socket.send_fds(self._control, [run_id.encode()], [writing])
            except OSError as error:
                raise CannotFork(f"it is gone ({error})") from error
            finally:
                os.close(writing)
            return self._outcome(reading)
        finally:
            os.close(reading)

    def _outcome(self, pipe: int) -> _Answer:
        said = ""
        end = time.monotonic() + _ANSWER_LIMIT_S
        while READY not in said.split():
            if not select.select([pipe], [], [], max(end - time.monotonic(), 0.0))[0]:
                if self._process.poll() is not None:
                    return _Answer.STARTED  # who holds the pipe still is a worker, and slow
                self._process.kill()  # what it has not forked by now it will not
                self._process.wait()
                end = time.monotonic() + _ANSWER_LIMIT_S
            elif part := os.read(pipe, 4096):
                said += part.decode()
            else:
                break
        words = said.split("\n")
        if READY in words or FORKED in words:
            # Forked and not ready: its worker died, and the forker says so to Dagster.
            return _Answer.STARTED
        if STALE in words:
            return _Answer.STALE
        raise CannotFork(said.strip() or "it ended")

    def let_go(self) -> None:
        """It forks no more, and ends when its workers have."""
        self._control.close()

    def has_ended(self) -> bool:
        """Whether it is gone; reaps it."""
        return self._process.poll() is not None


class WarmRunLauncher(DefaultRunLauncher):
    """Forks runs from warm processes; a default launcher where that cannot be."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._lock = threading.Lock()
        self._warm: dict[str, tuple[object, WarmProcess]] = {}
        self._retired: list[WarmProcess] = []
        self._not_before = 0.0

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> Self:
        """As Dagster makes it from dagster.yaml."""
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Fork the run, or start it in a new process."""
        with self._lock:
            self._retired = [process for process in self._retired if not process.has_ended()]
            forked = self._may_fork(context) and self._fork(context)
        if not forked:
            super().launch_run(context)

    def _fork(self, context: LaunchRunContext) -> bool:
        location = _location(context.dagster_run)
        for _ in range(_TRIES):  # one that was killed, or is stale, is replaced
            try:
                warm = self._warm_process(context, location)
                if warm.start_run(context.dagster_run.run_id) is _Answer.STARTED:
                    return True
                reason = "the files it imports change all the time"
            except (CannotFork, OSError) as error:
                reason = str(error)
            if location not in self._warm:  # it did not come up, and would not now
                break
            self._retire(location)
        self._not_before = time.monotonic() + _PAUSE_S
        _log.warning(
            "Runs cannot be forked from a warm process: %s. They start in new processes, "
            "which costs more; tried again in %.0f s",
            reason,
            _PAUSE_S,
        )
        return False

    def _may_fork(self, context: LaunchRunContext) -> bool:
        if sys.platform != "linux" or time.monotonic() < self._not_before:
            return False
        run = context.dagster_run
        if run.job_code_origin is None or run.remote_job_origin is None:
            return False
        origin = run.remote_job_origin.repository_origin.code_location_origin
        here = not isinstance(origin, GrpcServerCodeLocationOrigin) or _is_loopback(origin.host)
        return here and _wanted()

    def _warm_process(self, context: LaunchRunContext, location: str) -> WarmProcess:
        run = context.dagster_run
        assert run.job_code_origin is not None
        code = (run.job_code_origin.repository_origin, _server_id(context, location))
        known = self._warm.get(location)
        if known is not None and known[0] == code:
            return known[1]
        self._retire(location)
        warm = WarmProcess(
            run.job_code_origin,
            serialize_value(self._instance.get_ref()),
            [str(settings_in_force().settings.home.absolute() / SETTINGS_FILE)],
        )
        self._warm[location] = (code, warm)
        return warm

    def _retire(self, location: str) -> None:
        if (known := self._warm.pop(location, None)) is not None:
            known[1].let_go()
            self._retired.append(known[1])

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's process, whoever forked it; it reports the run as canceled."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        worker = worker_of(run) if run is not None and not run.is_finished else None
        if run is None or worker is None:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        with contextlib.suppress(ProcessLookupError):
            if worker.lives():
                os.kill(worker.pid, signal.SIGINT)
                return True
        return False

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring may ask, at its own interval."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process lives; one that is not known here counts as if it did."""
        worker = worker_of(run)
        if worker is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its process is not known here")
        if worker.lives():
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(worker.pid))
        told = f"process {worker.pid} on {socket.gethostname()} is gone"
        return CheckRunHealthResult(WorkerStatus.FAILED, told, run_worker_id=str(worker.pid))

    def dispose(self) -> None:
        """Let go of the warm processes: each ends with the last of its runs."""
        with self._lock:
            for location in list(self._warm):
                self._retire(location)
        super().dispose()


def _wanted() -> bool:
    """The setting, read anew: settings.env may have changed."""
    try:
        return settings_in_force().settings.fork_runs
    except (ValidationError, SettingsError) as error:
        told = "; ".join(sentences(error))
        _log.warning("The settings cannot be read (%s): runs start in new processes", told)
        return False


def _location(run: DagsterRun) -> str:
    assert run.remote_job_origin is not None
    name: str = run.remote_job_origin.repository_origin.code_location_origin.location_name
    return name


def _server_id(context: LaunchRunContext, location: str) -> str:
    """Changes when a code server of its own loads the code anew.

    A code server that belongs to the daemon is started anew every minute, for nothing.
    """
    if context.workspace is None:
        return ""
    found = context.workspace.get_code_location(location)
    if not isinstance(found.origin, GrpcServerCodeLocationOrigin):
        return ""
    return str(getattr(found, "server_id", ""))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
