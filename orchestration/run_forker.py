"""The warm process that runs are forked from: the code is imported once, not once a run.

    launcher ──code, instance──▶ forker: imports, then "ready"
             ──run, a pipe─────▶ forker ──fork──▶ run worker: notes itself in the run's tags,
             ◀──"forked"─────────┘ │                │         then does what `dagster api
             ◀──"ready"────────────┼────────────────┘         execute_run` does
                                   └─ a worker died: a helper is forked that fails its run

Invariants: one thread, so that a fork copies no lock that another thread holds; what would be a
second one is refused before each fork. Files it has imported that changed since make it stale: it
forks no more, and the launcher starts the next one. It ends when its launcher is gone or lets go of
it, but not before the last of its workers: their deaths are noticed to the end.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dagster import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import JobPythonOrigin
from dagster._serdes import deserialize_value
from dagster._utils import get_run_crash_explanation

from orchestration.dagster_storage.connections import close_connections
from orchestration.lost_runs import worker_tag
from orchestration.rehearsal import rehearse

READY = "ready"
FORKED = "forked"
STALE = "stale"

MESSAGE_BYTES = 128 * 1024
"""The longest message: a socket that keeps messages apart holds at least this."""

_HARMLESS_THREADS = {"jemalloc_bg_thd"}
"""Threads that put themselves right in a forked process."""


@dataclass(frozen=True)
class Order:
    """The first message: the code to import, and the instance that its runs are written to."""

    origin: JobPythonOrigin
    instance: InstanceRef
    watched: list[str]

    @classmethod
    def read(cls, message: bytes) -> Order:
        """From the launcher's JSON."""
        found: dict[str, Any] = json.loads(message)
        return cls(
            deserialize_value(found["origin"], JobPythonOrigin),
            deserialize_value(found["instance"], InstanceRef),
            found["watched"],
        )


@dataclass
class Forker:
    """The warm process: what it has imported, and the workers it has forked."""

    control: socket.socket
    order: Order
    instance: DagsterInstance | None = None  # open and warm, if it may be used over a fork
    stamps: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    workers: dict[int, tuple[int, str]] = field(default_factory=dict)  # pidfd → pid, run

    def warm_up(self) -> None:
        """Import what a run needs, and stamp the files it came from."""
        _import_all(self.order)
        rehearse()
        instance = DagsterInstance.from_ref(self.order.instance)
        instance.get_runs(limit=1)
        instance.all_asset_keys()
        if close_connections(instance):
            self.instance = instance
        else:
            instance.dispose()
        self.stamps = {path: _stamp(path) for path in {*_imported(), *self.order.watched}}
        sys.stdout.flush()  # or every worker would say again what the code said when imported
        gc.collect()
        gc.freeze()  # a collection in a worker would else write to, and so copy, every page

    def serve(self) -> None:
        """Fork what is asked for until the launcher is gone and the last worker has ended."""
        asked = True
        while asked or self.workers:
            waited_for = [*self.workers, *([self.control.fileno()] if asked else [])]
            for ready in _readable(waited_for):
                if ready in self.workers:
                    self._bury(ready)
                elif not self._take_request():
                    asked = False

    def _take_request(self) -> bool:
        """Fork a worker, or say on the pipe why not. False: nothing will be asked for any more."""
        message, pipes, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 1)
        if not message:
            return False
        pipe = pipes[0]
        try:
            if (reason := self._why_not()) is not None:
                _say(pipe, reason)
                return False
            self._fork_worker(message.decode(), pipe)
        finally:
            os.close(pipe)
        return True

    def _why_not(self) -> str | None:
        if any(_stamp(path) != stamp for path, stamp in self.stamps.items()):
            return STALE
        others = _other_threads()
        return f"threads run in it: {', '.join(others)}" if others else None

    def _fork_worker(self, run_id: str, pipe: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._leave(lambda: _work(run_id, self._opened(), pipe))
        self.workers[os.pidfd_open(pid)] = (pid, run_id)
        _say(pipe, FORKED)

    def _bury(self, pidfd: int) -> None:
        pid, run_id = self.workers.pop(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0 or not run_id:
            return
        # In a process of its own: this one opens no storage, whose clients might start threads.
        helper = os.fork()
        if helper == 0:
            self._leave(lambda: _fail_run(run_id, self._opened(), pid, code))
        self.workers[os.pidfd_open(helper)] = (helper, "")

    def _opened(self) -> DagsterInstance:
        return self.instance or DagsterInstance.from_ref(self.order.instance)

    def _leave(self, work: Any) -> NoReturn:
        """In a forked process: let go of what is the forker's, do the work, end."""
        code = 1
        try:
            self.control.close()
            for pidfd in self.workers:
                os.close(pidfd)
            # Dagster copies the handler of SIGINT to SIGTERM; a shell may have had it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _work(run_id: str, opened: DagsterInstance, pipe: int) -> int:
    """A run, from its first event to its last; gives the exit code."""
    from dagster._cli.api import _execute_run_command_body
    from dagster._utils.interrupts import capture_interrupts

    with capture_interrupts(), opened as instance:
        # Before anything else is written to the run: tags and status stand in one row.
        instance.add_run_tags(run_id, worker_tag(run_id))
        _say(pipe, READY)
        os.close(pipe)
        return _execute_run_command_body(
            run_id, instance, lambda event: None, set_exit_code_on_failure=True
        )


def _fail_run(run_id: str, opened: DagsterInstance, pid: int, code: int) -> int:
    """Mark a run as failed whose worker left it unfinished; Dagster's run retries go on from it."""
    with opened as instance:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            told = get_run_crash_explanation(f"The run's process (pid {pid})", code)
            instance.report_run_failed(run, told)
    return 0


def _import_all(order: Order) -> None:
    """The user's code and Dagster's, with the clients of its storage."""
    import dagster._cli.api
    import dagster._core.execution.plan.execute_plan  # noqa: F401
    from dagster._utils.hosted_user_process import recon_job_from_origin

    recon_job_from_origin(order.origin).get_definition()


def _imported() -> Iterable[str]:
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return (file for file in files if file)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - two thousand of them before each fork
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _other_threads() -> list[str]:
    own = str(os.getpid())
    names = []
    for task in Path("/proc/self/task").iterdir():
        if task.name != own:
            with contextlib.suppress(OSError):
                names.append((task / "comm").read_text().strip())
    return [name for name in names if name not in _HARMLESS_THREADS]


def _readable(descriptors: list[int]) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll()]


def _say(pipe: int, word: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone; the run is not
        os.write(pipe, f"{word}\n".encode())


def _heed_signals(control: socket.socket) -> None:
    def let_go(_number: int, _frame: FrameType | None) -> None:
        control.shutdown(socket.SHUT_RD)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher and the workers
    signal.signal(signal.SIGTERM, let_go)


def main(descriptor: int) -> None:
    """Serve the launcher at the other end of the socket."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)

    _heed_signals(control)
    forker = Forker(control, Order.read(control.recv(MESSAGE_BYTES)))
    try:
        forker.warm_up()
        _heed_signals(control)  # again: Dagster's runs, and the rehearsal is one, set their own
        others = _other_threads()
        said = f"threads run in it: {', '.join(others)}" if others else READY
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
    with contextlib.suppress(BrokenPipeError):
        control.send(said.encode()[:MESSAGE_BYTES])
    if said == READY:
        forker.serve()


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()
    main(int(sys.argv[1]))
