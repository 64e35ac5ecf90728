"""A stager: the process that makes the files of one batch after the other, for a run.

    run ──settings, once──▶ stager ──"ready"──▶ run
        ──job──▶ reads, judges, writes the files ──answer: what to register, or the error──▶ run
                 "still here" every few seconds ───────────────────────────────────────────▶

It runs `main`, given the socket to the run. It writes nothing into the ledger. What its files are
worth is decided by the run that started it: under whose lease it asks, before they appear, and
which registers them. It ends when the run lets go of the socket or is gone, whatever it is at; then
its files are named by nobody, and the next attempt at the batch deletes them by their names
(leftovers.py).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from assets.pipeline.batch import Batch
from assets.pipeline.errors import BatchError
from assets.pipeline.failpoints import failpoint
from assets.pipeline.garbage import searched_rarely
from assets.pipeline.key_upkeep import Window, open_window
from assets.pipeline.registering import Made, make_from_records
from assets.pipeline.sources import check_source
from assets.pipeline.worker import Worker
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.leases import Lease
from orchestration.settings import Settings

READY = "ready"
HERE = "here"

BEATS = 6
"""How often it says that it is here, in the time after which its silence would be its end."""
_BEAT_MOST_S = 5.0
_LEAVE_S = 10.0
"""Seconds that it has to see for itself that its run is gone, between two chunks, and to let go."""


@dataclass(frozen=True)
class Terms:
    """The first message: what holds for every job. `share` as a Worker has it."""

    settings: Settings
    run_id: str
    share: int


@dataclass(frozen=True)
class Job:
    """An attempt at staging a batch; `window` is what its records are compared with."""

    batch: Batch
    number: int
    lease: Lease
    window: Window


@dataclass(frozen=True)
class Packed:
    """An error on its way to another process: not every one can be pickled as it is."""

    kind: type[BaseException]
    text: str
    values: dict[str, Any]

    def unpacked(self) -> BaseException:
        """The error, as it was raised."""
        error = self.kind.__new__(self.kind)
        Exception.__init__(error, self.text)
        vars(error).update(self.values)
        return error


@dataclass(frozen=True)
class Answer:
    """What came of a job: `made`, or an error; and the most memory the process ever held."""

    made: Made | None
    error: Packed | BaseException | None
    peak_bytes: int

    def result(self) -> Made:
        """What was made. Raises what was raised."""
        if self.error is not None:
            raise self.error.unpacked() if isinstance(self.error, Packed) else self.error
        assert self.made is not None
        return self.made


def stage_job(worker: Worker, job: Job, stays: Callable[[], None] | None = None) -> Made:
    """Do a job, in whatever process; `stays` as make_from_records has it."""
    batch = job.batch
    with searched_rarely():
        check_source(worker, batch)
        seen = open_window(worker.lake, batch, job.window)
        made = make_from_records(worker, job.lease, batch, job.number, seen, stays)
    failpoint("before-answer")
    return replace(made, window=job.window)


def packed(error: BaseException) -> Packed | BaseException:
    """An error for the way; one that would not arrive as it is, as its name and text."""
    if isinstance(error, BatchError):
        return Packed(type(error), str(error), dict(vars(error)))
    with contextlib.suppress(Exception):
        arrived = pickle.loads(pickle.dumps(error))
        if (type(arrived), str(arrived)) == (type(error), str(error)):
            return error
    return Packed(RuntimeError, f"{type(error).__name__}: {error}", {})


class _Line:
    """The socket to the run. Two threads write to it, one message at a time."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()

    def hear(self) -> Any:
        """The next message. Raises EOFError when there is none any more."""
        return self._connection.recv()

    def say(self, message: object) -> None:
        """Send a message."""
        with self._lock:
            self._connection.send(message)

    def is_gone(self, seconds: float = 0.0) -> bool:
        """Whether the run has let go, be it within so many seconds."""
        poll = select.poll()  # one for each call: two threads ask
        poll.register(self._connection.fileno(), 0)  # that the other end is gone is always told
        return bool(poll.poll(seconds * 1000))

    def leave_if_gone(self) -> None:
        """End this process when its run is gone, but let go of what is being written first.

        Who wakes late has nobody after it to remove that.
        """
        if self.is_gone():
            sys.exit(1)

    def watch(self, beat_s: float) -> None:
        """Say that this process is here, and end it when nobody hears that any more."""
        with contextlib.suppress(OSError):
            while not self.is_gone(beat_s):
                self.say(HERE)
        time.sleep(_LEAVE_S)
        os._exit(1)


def _serve(line: _Line) -> None:
    terms: Terms = line.hear()
    settings = terms.settings
    ledger = open_ledger(settings.ledger)
    worker = Worker(settings, ledger, terms.run_id, say=_say, share=terms.share)
    beat_s = min(_BEAT_MOST_S, settings.lease_seconds / BEATS)
    threading.Thread(target=line.watch, args=[beat_s], name="watch", daemon=True).start()
    line.say(READY)
    while True:
        job: Job = line.hear()
        made, error = None, None
        try:
            made = stage_job(worker, job, line.leave_if_gone)
        except Exception as raised:  # whatever it is: the run decides
            error = packed(raised)
        line.say(Answer(made, error, _peak_bytes()))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _peak_bytes() -> int:
    """Not `ru_maxrss`, which begins with what the parent held; 0 where there is no /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def main(descriptor: int) -> NoReturn:
    """Serve the run at the other end of the socket, until it lets go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run
    os.set_inheritable(descriptor, False)
    code = 1
    try:
        _serve(_Line(descriptor))
    except (EOFError, ConnectionError):  # the run has let go
        code = 0
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # all is let go of: Kafka's client would take its time
