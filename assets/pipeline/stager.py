"""A stager: the process that makes the files of one batch after the other, for a run.

    run ──job──▶ reads, judges, writes the files ──answer: what to register, or the error──▶ run
                                    │
                                    └─ the run is gone: what it has made is taken back

It runs `main`, given the socket to the run; what they say is in stager_messages.py. It writes
nothing into the ledger. What its files are worth is decided by the run that started it: under whose
lease it asks, before they appear, and which registers them. It ends when the run lets go of the
socket or is gone, whatever it is at; then its files are named by nobody, and the next attempt at
the batch deletes them by their names (leftovers.py). Who was stopped and wakes after that deletes
by itself what has appeared since. Invariant: a run that has no answer registers nothing, so what is
not answered may be taken back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from assets.pipeline.failpoints import failpoint
from assets.pipeline.garbage import searched_rarely
from assets.pipeline.key_upkeep import open_window
from assets.pipeline.lake import Lake
from assets.pipeline.leftovers import take_back
from assets.pipeline.registering import Made, make_from_records
from assets.pipeline.sources import check_source
from assets.pipeline.stager_messages import Here, Job, Ready, Terms, answer_of
from assets.pipeline.version import CODE_VERSION
from assets.pipeline.worker import Worker
from orchestration.ledger.connection import open_ledger

BEATS = 6
"""How often it says that it is here, in the time after which its silence would be its end."""
_BEAT_MOST_S = 5.0
_LEAVE_S = 10.0
"""Seconds that it has to see for itself that its run is gone, between two chunks, and to let go."""


def stage_job(worker: Worker, job: Job, stays: Callable[[], None] | None = None) -> Made:
    """Do a job, in whatever process; `stays` as make_from_records has it."""
    batch = job.batch
    with searched_rarely():
        check_source(worker, batch)
        index = worker.lake if job.copies is None else Lake(job.copies)
        seen = open_window(index, batch, job.window)
        made = make_from_records(worker, job.lease, batch, job.number, seen, stays)
    failpoint("before-answer")
    return replace(made, window=job.window)


class _Line:
    """The socket to the run. Two threads write to it, one message at a time.

    `moved_at` is when the job that it has moved on last, by the monotonic clock; None without one.
    """

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._lock = threading.Lock()
        self.moved_at: float | None = None

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

    def go_on(self) -> None:
        """The job moves on, or this process ends, as its run is gone: but then it lets go of what
        is being written first. Who wakes late has nobody after it to remove that.
        """
        if self.is_gone():
            sys.exit(1)
        self.move()

    def move(self) -> None:
        """The job moves on. Where a file of it may be there already, nothing ends here: whoever
        takes that back comes after the job.
        """
        self.moved_at = time.monotonic()

    def watch(self, beat_s: float) -> None:
        """Say that this process is here, and end it when nobody hears that any more."""
        with contextlib.suppress(OSError):
            while not self.is_gone(beat_s):
                moved_at = self.moved_at
                self.say(Here(0.0 if moved_at is None else time.monotonic() - moved_at))
        time.sleep(_LEAVE_S)
        os._exit(1)


def _serve(line: _Line) -> None:
    terms: Terms = line.hear()
    settings = terms.settings
    ledger = open_ledger(settings.ledger)
    worker = Worker(settings, ledger, terms.run_id, say=_say, share=terms.share)
    beat_s = min(_BEAT_MOST_S, settings.lease_seconds / BEATS)
    threading.Thread(target=line.watch, args=[beat_s], name="watch", daemon=True).start()
    line.say(Ready(CODE_VERSION))
    while True:
        job: Job = line.hear()
        line.moved_at = time.monotonic()
        made, error = None, None
        try:
            worker.lake.on_sent = line.move
            made = stage_job(worker, job, line.go_on)
        except Exception as raised:  # whatever it is: the run decides
            error = raised
        if line.is_gone():
            take_back(worker.lake, job.batch, job.number)
            sys.exit(1)
        line.moved_at = None
        line.say(answer_of(made, error, _peak_bytes()))


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
