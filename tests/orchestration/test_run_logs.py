"""What a run prints: in files for the UI at once, and where it printed before when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from orchestration.run_logs import RunLogs

SAID = """
import os, subprocess, sys
from pathlib import Path
from orchestration.run_logs import RunLogs

folder, key = sys.argv[1], ["run", "compute_logs", "step"]
logs = RunLogs(folder)
print("before")
for attempt in ("first", "second"):
    with logs.capture_logs(key):
        print(attempt, "said")
        subprocess.run(["echo", attempt, "of a child"], check=True)
        os.write(2, b"\\xff: no text\\n")
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        seen = logs.get_log_data(key).stdout.decode()
    print("seen", attempt in seen, "children", len(children))
"""


def test_what_is_printed_is_in_the_file_and_comes_after(tmp_path: Path) -> None:
    """At once in the UI, whoever of the process printed it; later where it would have gone."""
    done = subprocess.run(
        [sys.executable, "-c", SAID, str(tmp_path)],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stdout.decode().splitlines() == [
        "before",
        "first said",
        "first of a child",
        "seen True children 0",
        "second said",
        "second of a child",
        "seen True children 0",
    ]
    assert done.stderr.count(b"\xff: no text\n") == 2
    dagsters = LocalComputeLogManager(str(tmp_path))
    key = ["run", "compute_logs", "step"]
    assert dagsters.is_capture_complete(key)
    kept = dagsters.get_log_data(key)
    assert kept.stdout == b"first said\nfirst of a child\nsecond said\nsecond of a child\n"
    assert kept.stderr == b"\xff: no text\n" * 2


def test_much_is_copied_in_part(tmp_path: Path) -> None:
    """The file has all of it; the daemon's log is not filled by one run."""
    code = SAID.replace('print(attempt, "said")', 'print("x" * (3 << 20))')
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True
    )
    assert len(done.stdout) < 2.1 * (1 << 20)
    kept = RunLogs(str(tmp_path)).get_log_data(["run", "compute_logs", "step"])
    assert kept.stdout is not None
    assert len(kept.stdout) > 2 * (3 << 20)


def test_a_step_that_fails_has_said_all_it_will(tmp_path: Path) -> None:
    """The UI waits for no more of it."""
    logs, key = RunLogs(str(tmp_path)), ["run", "compute_logs", "step"]
    with pytest.raises(KeyboardInterrupt), logs.capture_logs(key):
        raise KeyboardInterrupt
    assert logs.is_capture_complete(key)
