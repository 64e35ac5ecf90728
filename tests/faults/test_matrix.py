"""The failure matrix has a test for every row, and the page says which."""

from __future__ import annotations

import subprocess
import sys

from tests.faults.matrix import PAGE, ROOT


def test_the_page_is_what_the_tests_say() -> None:
    """docs/failure-matrix.md lists exactly the tests that are marked; no row is without one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.matrix"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**none**" not in done.stdout
    assert PAGE.read_text() == done.stdout, "run `python -m tests.faults.matrix --write`"
