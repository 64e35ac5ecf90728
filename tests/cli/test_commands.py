"""The command line as a person or a script meets it: output, exit codes, one clear line."""

from __future__ import annotations

import errno
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
from sqlalchemy.exc import OperationalError

from assets.pipeline.errors import TopicMissing
from local_stack.processes import Record, Service, died, recorded, running, start, stop_all
from orchestration.cli import _in_one_line
from tests.conftest import unused_port

Run = Callable[..., subprocess.CompletedProcess[str]]

NOBODY = "127.0.0.1:9"
"""Where no Kafka answers."""


@pytest.fixture
def tidemark(tmp_path: Path) -> Run:
    """Runs `tidemark` with a home of its own; keyword arguments become TIDEMARK_… variables."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if "TIDEMARK" not in name}
        given = {f"TIDEMARK_{name.upper()}": value for name, value in settings.items()}
        code = "from orchestration.cli import main; main()"
        if settings.get("kafka_bootstrap_servers") == NOBODY:  # away after a second, not after ten
            code = f"from assets.pipeline import topic; topic._METADATA_TIMEOUT_S = 1.0; {code}"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
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
    status = tidemark("status", kafka_bootstrap_servers=NOBODY)
    assert status.returncode == 0
    assert "make up" in status.stdout


def test_down_without_a_stack_is_calm(tidemark: Run) -> None:
    """`down` of nothing succeeds and says that there was nothing."""
    down = tidemark("down")
    assert down.returncode == 0
    assert "nothing" in down.stderr


def test_a_batch_without_kafka_fails_in_one_line(tidemark: Run) -> None:
    """`batch` without Kafka says so, without a traceback, and fails."""
    failed = tidemark("batch", kafka_bootstrap_servers=NOBODY)
    assert failed.returncode == 1
    assert "Kafka did not answer" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "did not answer" not in failed.stdout  # it was asked once


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("kafka_options", "notjson", "TIDEMARK_KAFKA_OPTIONS is not JSON"),
        ("kafka_options", '{"linger.ms": 5}', "TIDEMARK_KAFKA_OPTIONS, linger.ms: "),
        ("capture_port", "99999", "TIDEMARK_CAPTURE_PORT"),
        ("clickhouse_url", "ch:8123", "TIDEMARK_CLICKHOUSE_URL: "),
        ("clickhouse_database", "my-events", "TIDEMARK_CLICKHOUSE_DATABASE: "),
        ("topic", "my events", "TIDEMARK_TOPIC: "),
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
    ("file", "content", "arguments", "told"),
    [
        ("settings.env", b"# ours\n\nTIDEMARK_CADENCE 2h\n", ("settings",), ", line 3: not a s"),
        ("settings.env", b"TIDEMARK_CADENCE\n", ("settings",), ", line 1: not a setting; write"),
        ("settings.env", b"TIDEMARK_TOPIC='a\nTIDEMARK_CADENCE=2h", ("settings",), ", line 1: not"),
        (
            "settings.env",
            b"TIDEMARK_TOPIC=\xff",
            ("settings",),
            "is no text in UTF-8, from byte 15",
        ),
        (
            "ledger.db",
            b"no database at all" * 99,
            ("projects", "list"),
            "a copy of it in its place",
        ),
        ("run/kafka.json", b"", ("status",), "delete the file"),
        ("run/kafka.json", b'{"name": "kafka"}', ("down",), "delete the file"),
        ("dagster/dagster.yaml", b"\nstorage: [\n", ("up",), "/dagster.yaml, line 3: "),
        ("dagster/dagster.yaml", b"- storage\n", ("up",), "delete it to have it renewed"),
        ("dagster/dagster.yaml", b"nux: \xff\n", ("up",), "delete it to have it renewed"),
        ("dagster", b"", ("up",), "see TIDEMARK_HOME"),
    ],
)
def test_a_damaged_file_is_one_line_that_says_what_to_do(
    tidemark: Run, tmp_path: Path, file: str, content: bytes, arguments: tuple[str], told: str
) -> None:
    """No traceback, and nothing is started or written over."""
    damaged = tmp_path / "home" / file
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(content)
    away = {"kafka_bootstrap_servers": NOBODY}
    failed = tidemark(*arguments, **away)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert told in failed.stderr
    assert file in failed.stderr or "ledger" in failed.stderr
    assert damaged.read_bytes() == content


def test_a_setting_that_is_misspelt_is_told(tidemark: Run, tmp_path: Path) -> None:
    """It would be passed over without a word; the list is printed all the same."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "settings.env").write_text(
        "OTHERS=1\ntidemark_cadance=2h\nTIDEMARK_QQQ=1\nTIDEMARK_CADENCE=2h\n"
    )
    listed = tidemark("settings")
    assert listed.returncode == 0
    assert "TIDEMARK_CADENCE=2h" in listed.stdout
    first, second = listed.stderr.splitlines()
    assert first.endswith("line 2: TIDEMARK_CADANCE is no setting: is TIDEMARK_CADENCE meant?")
    assert second.endswith("TIDEMARK_QQQ is no setting: `tidemark settings` lists what there is")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "device; make room on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/h/run"), "/h/run: Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", "/h/run"), "in TIDEMARK_HOME"),
        (OperationalError("", {}, Exception("database or disk is full")), "make room on its disk"),
        (
            OperationalError("", {}, Exception("attempt to write a readonly database")),
            "let this user write its folder",
        ),
        (OperationalError("", {}, Exception("odd\nlines")), "(odd); see TIDEMARK_LEDGER_URL"),
        (TopicMissing("Kafka at a:1 has no topic b"), "no topic b: create it (`tidemark up` does"),
    ],
)
def test_a_full_disk_and_a_folder_of_others_are_told_with_what_to_do(
    error: Exception, told: str
) -> None:
    """In the words of the system, and then ours."""
    assert told in _in_one_line(error)


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("projects", "create", " "),
        ("gaps", "accept", "1", "--why", ""),
        ("gaps", "refuse", "1", "--why", " "),
    ],
)
def test_words_that_say_nothing_are_refused(tidemark: Run, arguments: tuple[str, ...]) -> None:
    """What is kept for ever, or tells projects apart, is not empty."""
    refused = tidemark(*arguments)
    assert refused.returncode == 2
    assert "it is empty" in refused.stderr


def test_a_date_is_asked_for_by_name(tidemark: Run) -> None:
    """A refusal of a date names the argument, not the pattern of a date."""
    refused = tidemark("backfill", "rebuild", "2026-11-31")
    assert refused.returncode == 2
    assert "FIRST [LAST]" in refused.stderr
    assert "Invalid value for 'FIRST'" in refused.stderr


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
        away = {"kafka_bootstrap_servers": NOBODY}
        seen = json.loads(tidemark("status", "--json", **away).stdout)
        assert list(seen["services"]) == ["capture"]
        assert seen["died"] == [{"service": "kafka", "log": dead.log}]
        told = tidemark("status", **away).stdout
        assert f"kafka died (log: {dead.log})" in told
        assert "`tidemark down`, then `tidemark up` mends it" in told
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
