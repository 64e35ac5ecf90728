"""The stagers of a run: processes that stage for it (stager.py), from the first that is needed on.

Each is started, not forked: neither Kafka's client nor Arrow's threads outlive a fork. A stager
that was killed is missed at once, one that is stopped after the time for which a silent worker
keeps its lease, and one whose job does not move on after a long time. They are killed then, so that
nothing comes of them later. Invariant: when the with-block ends, each of them has ended, or ends as
soon as the system lets it.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from assets.pipeline.batch import Batch
from assets.pipeline.errors import StagerGone
from assets.pipeline.registering import Made
from assets.pipeline.stager_messages import Answer, Here, Job, Ready, Terms
from assets.pipeline.version import CODE_VERSION
from assets.pipeline.worker import Worker

_REPOSITORY = Path(__file__).resolve().parents[2]
_MAIN = "import sys; from assets.pipeline.stager import main; main(int(sys.argv[1]))"
"""Not `-m`: what it pickles is to have the names of the module that the run knows."""
_BIRTH_S = 60.0
"""Seconds that a process has to start and import, at least."""
_STILL_S = 900.0
"""Seconds for which a job may stand still: between two chunks, or two parts of a file on its way to
the store."""
_END_S = 10.0
"""Seconds in which one that was killed ends, unless the system has it wait for a disk."""


class StagerUnborn(Exception):
    """A stager ended, or is of another version: there is no use in starting another one."""


class Stager:
    """One process, which does one job at a time. Raises OSError when it cannot be started.

    `name` is host and pid; `peak_bytes` the most memory that it has said it held.
    """

    def __init__(self, worker: Worker, share: int) -> None:
        self._patience_s = float(worker.settings.lease_seconds)
        self._birth_s = max(self._patience_s, _BIRTH_S)
        self._born_by = time.monotonic() + self._birth_s
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

        StagerGone when it was killed, falls silent, or stands still; StagerUnborn when it never was
        there, or has other code.
        """
        assert self._job is not None
        while True:
            message = self._next(self._job.batch)
            if isinstance(message, Ready):
                self._welcome(message)
            elif isinstance(message, Answer):
                self._job = None
                self.peak_bytes = max(self.peak_bytes, message.peak_bytes)
                return message.result()
            else:
                assert isinstance(message, Here), message
                # What is behind it may say that the job is done: only the last one counts.
                if message.still_s > _STILL_S and not self._line.poll(0):
                    self.kill()
                    raise StagerGone(
                        f"the stager {self.name} of batch {self._job.batch.batch_id} has not "
                        f"moved on for {message.still_s:.0f} s and was killed"
                    )

    def kill(self) -> None:
        """End it, whatever it is at; returns when it has ended, or nothing but the system holds it.

        That is a disk that does not answer, say: the signal waits for it.
        """
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._line.close()

    def _welcome(self, ready: Ready) -> None:
        if ready.version != CODE_VERSION:
            self.kill()
            raise StagerUnborn(
                f"the stager {self.name} is of version {ready.version} and this run of "
                f"{CODE_VERSION}: the code was changed meanwhile"
            )
        self._ready = True

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it is gone, which is told where its result is waited for
            self._line.send(message)

    def _next(self, batch: Batch) -> Any:
        seconds = self._patience_s
        if not self._ready:
            seconds = max(0.0, self._born_by - time.monotonic())
        try:
            if self._line.poll(seconds):
                return self._line.recv()
            silent_s = self._patience_s if self._ready else self._birth_s
            told = f"said nothing for {silent_s:.0f} s and was killed"
        except (EOFError, OSError):
            # Should it only have closed the socket, it is to be gone all the same.
            told = f"ended ({_ended_by(self._process)})"
        except Exception as error:  # whatever there is that cannot be unpickled here
            self.kill()
            raise StagerUnborn(
                f"the stager {self.name} says what this run cannot read "
                f"({type(error).__name__}: {error}): the code was changed meanwhile"
            ) from error
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
        """The run stages by itself from here on. The first reason is said."""
        if self.count > 1:
            self._worker.say(f"{why}; this run stages without stagers")
        self.count = 1


def _ended_by(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "it closed its socket"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"
