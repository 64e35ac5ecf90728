"""Lost runs: runs that Dagster believes to be at work though their process is gone.

When the machine goes down, or a run's process and its code server die together, nobody is left to
say so: the run stays "started" for ever, holds the topic's pool, and no micro-batch starts again.
So each run is tagged with the process that works on it, and whoever is about to wait for the run
first looks whether that process still lives.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

WORKER_TAG = "tidemark/worker"


def this_process() -> str:
    """This process as a tag: host, pid, and when it was born, because pids come round again."""
    return f"{socket.gethostname()}:{os.getpid()}:{_born(os.getpid())}"


def is_gone(worker: str) -> bool:
    """Whether a tagged process ran on this host and no longer lives. Of other hosts: unknown."""
    host, pid, born = worker.rsplit(":", 2)
    return host == socket.gethostname() and _born(int(pid)) != born


def fail_lost_runs(instance: DagsterInstance, runs: Iterable[DagsterRun]) -> list[DagsterRun]:
    """Mark the runs whose process is gone as failed, and give them back."""
    lost = [
        run
        for run in runs
        if run.status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
        and WORKER_TAG in run.tags
        and is_gone(run.tags[WORKER_TAG])
    ]
    for run in lost:
        instance.report_run_failed(
            run,
            f"The process that worked on this run ({run.tags[WORKER_TAG]}) is gone. "
            "What it had begun is taken up by the next run.",
        )
    return lost


def _born(pid: int) -> str:
    """When a process started, in whatever words the system has for it; empty: there is none."""
    if sys.platform == "linux":
        try:
            # The name in parentheses may hold blanks; state is the first word behind it.
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        return "" if words[0] in "ZX" else f"{boot}.{words[19]}"
    shown = subprocess.run(
        ["ps", "-p", str(pid), "-o", "lstart="], capture_output=True, text=True, check=False
    )
    return "".join(shown.stdout.split()).replace(":", ".")
