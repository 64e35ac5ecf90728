"""Python processes that a test may kill, forked from one that has imported everything already.

    Forked(argv, env) ──▶ maker ──fork──▶ keeper ──fork──▶ `python *argv`
        ▲                                   │
        └── pid, stopped, ended ────────────┘

A start then costs a fork, not a second of imports. Invariant: what is forked has no thread, no
connection and no file of the test's: the maker is a process of its own that only imports, and it
ends when the test run does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "tests.faults.run_worker",
    "orchestration.cli",
    "orchestration.cli.redrive",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.dialects.sqlite.pysqlite",
)
MESSAGE_BYTES = 1 << 17


class Forked:
    """`python *argv` in the repository's folder: what `subprocess.Popen` is, as far as needed.

    It can write no file larger than `file_bytes`.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], file_bytes: int | None = None
    ) -> None:
        self.args = [sys.executable, *argv]
        self.returncode: int | None = None
        self._news, theirs = socket.socketpair()
        request = {"argv": list(argv), "env": dict(env), "file_bytes": file_bytes}
        with theirs:
            fds = [theirs.fileno(), 1, 2]
            socket.send_fds(_maker()[0], [json.dumps(request).encode()], fds)
        self._lines = self._news.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """The exit code, or minus the signal's number; None while it lives."""
        while self.returncode is None and select.select([self._news], [], [], 0)[0]:
            self._hear()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._news], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._hear()
        return self.returncode

    def await_stop(self) -> bool:
        """Return when it has stopped itself, or has ended: whether it stopped."""
        return self._hear()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """As the power cut does."""
        self.send_signal(signal.SIGKILL)

    def _hear(self) -> bool:
        """Take in the next change of its state: whether it is stopped now."""
        line = self._lines.readline()
        assert line, f"nobody knows what became of {self.args}"
        status = int(line)
        if os.WIFSTOPPED(status):
            return True
        self.returncode = os.waitstatus_to_exitcode(status)
        self._lines.close()
        self._news.close()
        return False


@cache
def _maker() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """This process's maker and the way to it: when that is closed, the maker ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        maker = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])
    return ours, maker


def _await_request(requests: socket.socket) -> dict[str, Any]:
    """Fork at every request; returns in the new processes alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        message, fds, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(*fds)
            request: dict[str, Any] = json.loads(message)
            return request
        for fd in fds:
            os.close(fd)


def _keep(news: int, out: int, err: int) -> None:
    """Fork once more, and tell what becomes of the child; returns in the child alone."""
    child = os.fork()
    if child == 0:
        os.dup2(out, 1)
        os.dup2(err, 2)
        for fd in (news, out, err):
            os.close(fd)
        return
    with contextlib.suppress(BrokenPipeError):  # the test is over
        os.write(news, b"%d\n" % child)
        while True:
            _, status = os.waitpid(child, os.WUNTRACED)
            os.write(news, b"%d\n" % status)
            if not os.WIFSTOPPED(status):
                break
    os._exit(0)


def _run(argv: list[str], env: dict[str, str], file_bytes: int | None) -> None:
    """Be `python *argv`."""
    os.environ.clear()
    os.environ.update(env)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    kind, what, *arguments = argv
    sys.argv = [kind, *arguments]
    if kind == "-c":
        exec(what, {"__name__": "__main__"})
    else:
        assert kind == "-m", argv
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for module in PRELOADED:
        importlib.import_module(module)
    _run(**_await_request(socket.socket(fileno=int(sys.argv[1]))))
