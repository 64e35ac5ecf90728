"""The stagers of a run: processes that stage for it (stager.py), from the first that is needed on.

Each is started, not forked: neither Kafka's client nor Arrow's threads outlive a fork. A stager
that was killed is missed at once, one that is stopped or hangs after the time for which a silent
worker keeps its lease: it is killed then, so that nothing comes of it later. Invariant: when the
with-block ends, none of them is alive.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from assets.pipeline.batch import Batch
from assets.pipeline.errors import StagerGone
from assets.pipeline.registering import Made
from assets.pipeline.stager import HERE, READY, Answer, Job, Terms
from assets.pipeline.worker import Worker

_REPOSITORY = Path(__file__).resolve().parents[2]
_MAIN = "import sys; from assets.pipeline.stager import main; main(int(sys.argv[1]))"
"""Not `-m`: what it pickles is to have the names of the module that the run knows."""
_BIRTH_S = 60.0
"""Seconds that a process has to start and import, at least."""


class StagerUnborn(Exception):
    """A stager ended before it was ready: there is no use in starting another one."""


class Stager:
    """One process, which does one job at a time. Raises OSError when it cannot be started.

    `name` is host and pid; `peak_bytes` the most memory that it has said it held.
    """

    def __init__(self, worker: Worker, share: int) -> None:
        self._patience_s = float(worker.settings.lease_seconds)
        self._ready = False
        self._job: Job | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _MAIN, str(descriptor)],
                    cwd=_REPOSITORY,
                    pass_fds=[descriptor],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError:
                ours.close()
                raise
        self.name = f"{socket.gethostname()}:{self._process.pid}"
        self.peak_bytes = 0
        self._line = Connection(ours.detach())
        self._send(Terms(worker.settings, worker.run_id, share))

    @property
    def is_idle(self) -> bool:
        """Whether it has no job."""
        return self._job is None

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone, by whomever."""
        return self._process.poll() is not None

    def begin(self, job: Job) -> None:
        """Give it a job, of which `result` will tell."""
        assert self.is_idle
        self._job = job
        self._send(job)

    def result(self) -> Made:
        """What came of its job; waits for it. Raises what went wrong there.

        StagerGone when it was killed or falls silent, StagerUnborn when it never was there.
        """
        assert self._job is not None
        while True:
            message = self._next(self._job.batch)
            if message == READY:
                self._ready = True
            elif isinstance(message, Answer):
                self._job = None
                self.peak_bytes = max(self.peak_bytes, message.peak_bytes)
                return message.result()
            else:
                assert message == HERE, message

    def kill(self) -> None:
        """End it, whatever it is at; returns when it has ended."""
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it is gone, which is told where its result is waited for
            self._line.send(message)

    def _next(self, batch: Batch) -> Any:
        seconds = self._patience_s if self._ready else max(self._patience_s, _BIRTH_S)
        try:
            if self._line.poll(seconds):
                return self._line.recv()
            told = f"said nothing for {seconds:.0f} s and was killed"
        except (EOFError, OSError):
            # Should it only have closed the socket, it is to be gone all the same.
            told = f"ended ({_ended_by(self._process)})"
        self.kill()
        if not self._ready:
            raise StagerUnborn(f"the stager {self.name} {told} before it was ready")
        raise StagerGone(
            f"the stager {self.name} of batch {batch.batch_id} {told}. Was its memory taken "
            "by the system? See TIDEMARK_STAGERS and TIDEMARK_BATCH_MAX_BYTES"
        )


class StagerPool:
    """Up to so many stagers as TIDEMARK_STAGERS says, for the length of a with-block.

    `count` is how many there may be; 1 when this run has none.
    """

    def __init__(self, worker: Worker) -> None:
        self.count = worker.settings.stagers
        self._worker = worker
        self._stagers: list[Stager] = []

    def __enter__(self) -> StagerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for stager in list(self._stagers):
            self.kill(stager)
        if self._worker.stagers:
            peaks = (f"{name} (at most {b:,} bytes)" for name, b in self._worker.stagers.items())
            self._worker.say(f"{len(self._worker.stagers)} stagers worked: {', '.join(peaks)}")

    def take(self) -> Stager | None:
        """A stager without a job, started if need be; None when this run has none any more."""
        if self.count == 1:
            return None
        for stager in [one for one in self._stagers if one.is_idle and one.has_ended]:
            self.kill(stager)  # else its next batch would be told to be the reason
        idle = next((stager for stager in self._stagers if stager.is_idle), None)
        if idle is None:
            try:
                idle = Stager(self._worker, self.count)
            except OSError as error:
                self.give_up(f"no stager could be started: {error}")
                return None
            self._stagers.append(idle)
            self._worker.stagers[idle.name] = 0
        return idle

    def note(self, stager: Stager) -> None:
        """Its job is over: how much memory it has taken so far, or that it is no more."""
        self._worker.stagers[stager.name] = stager.peak_bytes
        if not stager.is_idle:
            self.kill(stager)

    def kill(self, stager: Stager) -> None:
        """End a stager; another one takes its place when it is needed."""
        stager.kill()
        self._stagers.remove(stager)

    def give_up(self, why: str) -> None:
        """The run stages by itself from here on."""
        self._worker.say(f"{why}; this run stages without stagers")
        self.count = 1


def _ended_by(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it closed its socket"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
