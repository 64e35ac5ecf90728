"""The README's first command, shortened: real SDK, Kafka, Dagster, ClickHouse, DuckDB."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local_stack.process_table import processes


@pytest.mark.timeout(600)
def test_the_demo_proves_its_balance_and_leaves_nothing(tmp_path: Path) -> None:
    """Every event the SDK sent is loaded once by scheduled runs, and nothing stays running."""
    before = set(processes())
    demo = subprocess.run(
        [
            sys.executable,
            "-c",
            "from orchestration.cli import main; main()",
            "demo",
            "--events",
            "3000",
            "--cadence",
            "5s",
        ],
        env={**os.environ, "TIDEMARK_HOME": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Balance proved: 3,000 events" in demo.stdout
    counted = dict(re.findall(r"│ ([a-zA-Z (0-9)]+?) +│ +([\d,]+) │", demo.stdout))
    # 15 were sent twice, and three records are no events.
    assert counted["sent by the SDK"] == counted["acknowledged (200)"] == "3,015"
    assert counted["in Kafka"] == "3,018"
    assert counted["staged"] == counted["loaded"] == "3,000"
    assert (counted["rejected"], counted["duplicate"]) == ("3", "15")
    assert not (tmp_path / "demo").exists()
    marked = [pid for pid in set(processes()) - before if _is_of(pid, tmp_path)]
    assert marked == []


def _is_of(pid: int, home: Path) -> bool:
    try:
        return str(home).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
