"""Lost runs: runs that Dagster believes to be at work though their process is gone.

When the machine goes down, or a run's process and its code server die together, nobody is left to
say so: the run stays "started" for ever, holds the topic's pool, and no micro-batch starts again.
So each run is tagged with the process that works on it, and whoever is about to wait for the run
(or to stop it) first looks whether that process still lives.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from orchestration.process_stat import stat_of

WORKER_TAG = ".dagster/tidemark_worker"
"""Tags of this prefix are kept out of the UI's lists: it says nothing to a person."""

_AT_WORK = (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)


def worker_tag(run_id: str) -> dict[str, str]:
    """The tag that says this process works on a run: run, host, pid, and when it was born.

    The run's id, because a run that tries another one again inherits its tags; the birth, because
    pids come round again.
    """
    pid = os.getpid()
    return {WORKER_TAG: f"{run_id}:{socket.gethostname()}:{pid}:{_born(pid)}"}


@dataclass(frozen=True)
class RunWorker:
    """The process that a run's tag names, on this host."""

    pid: int
    born: str

    def lives(self) -> bool:
        """Whether it is at work still, and not another process that got its pid."""
        return _born(self.pid) == self.born


def worker_of(run: DagsterRun) -> RunWorker | None:
    """The run's own process. None: not noted, or on another host, of which we know nothing."""
    run_id, host, pid, born = run.tags.get(WORKER_TAG, ":::").split(":")
    ours = run_id == run.run_id and host == socket.gethostname()
    return RunWorker(int(pid), born) if ours else None


def is_lost(run: DagsterRun) -> bool:
    """Whether the run's process ran on this host and is gone."""
    worker = worker_of(run)
    return worker is not None and run.status in _AT_WORK and not worker.lives()


def fail_lost_runs(instance: DagsterInstance, runs: Iterable[DagsterRun]) -> list[DagsterRun]:
    """Mark the runs whose process is gone as failed, and give them back."""
    lost = [run for run in runs if is_lost(run)]
    for run in lost:
        instance.report_run_failed(
            run,
            f"The process that worked on this run on {socket.gethostname()} is gone. "
            "What it had begun is taken up by the next run.",
        )
    return lost


def _born(pid: int) -> str:
    """When a process started, in whatever words the system has for it; empty: there is none."""
    if sys.platform == "linux":
        try:
            words = stat_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        return "" if words[0] in "ZX" else f"{boot}.{words[19]}"
    shown = subprocess.run(
        ["ps", "-p", str(pid), "-o", "lstart="], capture_output=True, text=True, check=False
    )
    return "".join(shown.stdout.split()).replace(":", ".")
