"""The command line as a person or a script meets it: output, exit codes, one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tidemark(tmp_path: Path) -> Run:
    """Runs `tidemark` with a home of its own; keyword arguments become TIDEMARK_… variables."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if "TIDEMARK" not in name}
        given = {f"TIDEMARK_{name.upper()}": value for name, value in settings.items()}
        return subprocess.run(
            [sys.executable, "-c", "from orchestration.cli import main; main()", *arguments],
            env={**clean, "TIDEMARK_HOME": str(tmp_path / "home"), **given},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_new_project_is_one_json_document(tidemark: Run) -> None:
    """`projects create --json` prints the id and the token and nothing else."""
    made = json.loads(tidemark("projects", "create", "shop", "--json").stdout)
    assert made["project_id"] == 1
    assert made["token"].startswith("phc_")
    listed = json.loads(tidemark("projects", "list", "--json").stdout)
    assert [(project["name"], project["token"]) for project in listed] == [("shop", made["token"])]


def test_a_revoked_project_is_listed_as_such(tidemark: Run) -> None:
    """`projects revoke` makes a token bad and says so; one that is unknown fails in one line."""
    tidemark("projects", "create", "shop")
    assert tidemark("projects", "revoke", "1").returncode == 0
    assert "revoked" in tidemark("projects", "list").stdout
    unknown = tidemark("projects", "revoke", "7")
    assert unknown.returncode == 1
    assert "no project has the id 7" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_setting_that_makes_no_sense_is_one_line(tidemark: Run) -> None:
    """A bad setting names its variable and says what would be accepted."""
    refused = tidemark("settings", cadence="every now and then")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "TIDEMARK_CADENCE" in refused.stderr
    assert "30s" in refused.stderr


def test_every_setting_is_listed_with_its_meaning(tidemark: Run) -> None:
    """`settings --json` has each variable once, with its default and a sentence."""
    rows = json.loads(tidemark("settings", "--json").stdout)
    assert len({row["variable"] for row in rows}) == len(rows) > 20
    assert all(row["meaning"].endswith(".") for row in rows)


def test_a_secret_is_not_printed(tidemark: Run) -> None:
    """`settings` hides what should not stand in a terminal's history."""
    shown = tidemark("settings", clickhouse_password="tide-secret").stdout
    assert "tide-secret" not in shown


def test_status_without_a_stack_says_how_to_start_one(tidemark: Run) -> None:
    """`status` of nothing is not an error: it says what to do."""
    status = tidemark("status", kafka_bootstrap_servers="127.0.0.1:9")
    assert status.returncode == 0
    assert "make up" in status.stdout


def test_down_without_a_stack_is_calm(tidemark: Run) -> None:
    """`down` of nothing succeeds and says that there was nothing."""
    down = tidemark("down")
    assert down.returncode == 0
    assert "nothing" in down.stderr


def test_a_batch_without_kafka_fails_in_one_line(tidemark: Run) -> None:
    """`batch` without Kafka says so, without a traceback, and fails."""
    failed = tidemark("batch", kafka_bootstrap_servers="127.0.0.1:9")
    assert failed.returncode == 1
    assert "Kafka did not answer" in failed.stderr
    assert "Traceback" not in failed.stderr
