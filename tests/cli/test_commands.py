"""The command line as a person or a script meets it: output, exit codes, one clear line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local_stack.processes import Record, Service, died, recorded, running, start, stop_all
from tests.conftest import unused_port

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


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("kafka_options", "notjson", "TIDEMARK_KAFKA_OPTIONS is not JSON"),
        ("capture_port", "99999", "TIDEMARK_CAPTURE_PORT"),
        ("ledger_url", "nonsense", "TIDEMARK_LEDGER_URL"),
        ("ledger_url", "nosuchbase://host/name", "TIDEMARK_LEDGER_URL"),
        ("ledger_url", "mssql+pymssql://host/name", "TIDEMARK_LEDGER_URL"),
        ("home", "/dev/null/home", "TIDEMARK_HOME"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tidemark: Run, variable: str, value: str, told: str
) -> None:
    """Bad JSON, ports, databases, drivers and folders: one line that names the variable."""
    failed = tidemark("projects", "list", **{variable: value})
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert told in failed.stderr


@pytest.mark.parametrize(
    "arguments",
    [("projects", "revoke", "99999999999999999999"), ("demo", "--events", "0")],
)
def test_a_number_out_of_range_is_a_misspelt_command(
    tidemark: Run, arguments: tuple[str, ...]
) -> None:
    """What no database or demo can take is refused before anything is begun."""
    refused = tidemark(*arguments)
    assert refused.returncode == 2
    assert "range" in refused.stderr


def test_a_service_that_died_is_told(tidemark: Run, tmp_path: Path) -> None:
    """`status` names the dead and their logs, and `up` says how to mend half a stack."""
    home = tmp_path / "home"

    def idle(name: str) -> Record:
        code = "import signal; signal.pause()"
        return start(Service(name, [sys.executable, "-c", code], lambda: None), home)

    try:
        idle("capture")
        dead = idle("kafka")
        os.kill(dead.pid, signal.SIGKILL)
        while not died(home):
            time.sleep(0.02)
        away = {"kafka_bootstrap_servers": "127.0.0.1:9"}
        seen = json.loads(tidemark("status", "--json", **away).stdout)
        assert list(seen["services"]) == ["capture"]
        assert seen["died"] == [{"service": "kafka", "log": dead.log}]
        assert f"kafka died (log: {dead.log})" in tidemark("status", **away).stdout
        for how in ((), ("--detach",)):
            refused = tidemark("up", *how)
            assert refused.returncode == 1
            assert f"kafka (log: {dead.log}) died" in refused.stderr
            assert "`tidemark down`, then `tidemark up`" in refused.stderr
    finally:
        stop_all(home)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_up_that_is_ended_half_way_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A signal during `up --detach` stops what it has started so far."""
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes a connection, says nothing
        away = f"127.0.0.1:{silent.getsockname()[1]}"
        code = "from orchestration.cli import main; main()"
        clean = {name: value for name, value in os.environ.items() if "TIDEMARK" not in name}
        own = {
            "TIDEMARK_HOME": str(home),
            "TIDEMARK_KAFKA_BOOTSTRAP_SERVERS": away,
            "TIDEMARK_CLICKHOUSE_PORT": str(unused_port()),
        }
        up = subprocess.Popen([sys.executable, "-c", code, "up", "--detach"], env={**clean, **own})
        try:
            while not running(home):
                assert up.poll() is None
                time.sleep(0.02)
            up.send_signal(number)
            assert up.wait(60) == 128 + number
            assert recorded(home) == []
        finally:
            up.kill()
            up.wait()
            stop_all(home)
