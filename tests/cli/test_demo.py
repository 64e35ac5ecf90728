"""The README's first command, shortened: real SDK, Kafka, Dagster, ClickHouse, DuckDB."""

from __future__ import annotations

import os
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
    # 15 were sent twice, and three records are no events.
    assert "sent by the SDK     │  3,015" in demo.stdout
    assert "in Kafka            │  3,018" in demo.stdout
    assert "rejected            │      3" in demo.stdout
    assert "duplicate           │     15" in demo.stdout
    assert not (tmp_path / "demo").exists()
    marked = [pid for pid in set(processes()) - before if _is_of(pid, tmp_path)]
    assert marked == []


def _is_of(pid: int, home: Path) -> bool:
    try:
        return str(home).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
