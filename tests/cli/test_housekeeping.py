"""`tidemark housekeeping` on a home as `tidemark up` makes it, where Dagster keeps its runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestration.cli import tidemark
from orchestration.instance import write_instance
from tests.stack import Stack

RUNS = "runs of Dagster"


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_dagsters_runs_are_looked_at(
    new_stack: Callable[..., Stack],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dry_run: list[str],
    elsewhere: bool,
) -> None:
    """In the home, or in DAGSTER_HOME where that is set."""
    stack = new_stack().make_topic()
    stack.run()
    file = write_instance(tmp_path / "elsewhere" if elsewhere else stack.settings.home)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    env = stack.settings.environment() | ({"DAGSTER_HOME": str(file.parent)} if elsewhere else {})
    done = CliRunner().invoke(tidemark, ["housekeeping", "--json", *dry_run], env=env)
    assert done.exception is None, done.exception
    assert RUNS in [tally["what"] for tally in json.loads(done.stdout)["let_go"]]


CANNOT_BE_USED = r"tidemark: Dagster's instance cannot be used \((?=.*TIDEMARK_DAGSTER_STORAGE_URL)"


@pytest.mark.parametrize(
    ("section", "url", "told"),
    [
        ("run_queue: always\n", "", CANNOT_BE_USED + ".*run_queue"),
        ("run_queue: [\n", "", "tidemark: .*/dagster.yaml, line .* delete it to have it renewed"),
        (
            "",
            "postgresql://me:hunter2@127.0.0.1:9/dagster?connect_timeout=1",
            CANNOT_BE_USED + ".*127.0.0.1",
        ),
    ],
)
def test_an_instance_that_cannot_be_used_is_one_line(
    tmp_path: Path, section: str, url: str, told: str
) -> None:
    """A file with a slip in it, a PostgreSQL that is away: what it is, and where to look."""
    file = write_instance(tmp_path)
    if section:
        file.write_text(file.read_text().partition("run_queue:")[0] + section)
    clean = {
        n: text for n, text in os.environ.items() if "TIDEMARK" not in n and "DAGSTER" not in n
    }
    failed = subprocess.run(
        [sys.executable, "-c", "from orchestration.cli import main; main()", "housekeeping"],
        env={**clean, "TIDEMARK_HOME": str(tmp_path), "TIDEMARK_DAGSTER_STORAGE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert re.match(told, last), last
    assert "hunter2" not in failed.stderr
