"""`tidemark projects` and `tidemark rules`: output, JSON documents, and errors in one line."""

from __future__ import annotations

import json
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from local_stack.kafka.topics import ensure_topic
from orchestration.cli import tidemark as commands
from orchestration.ledger.access import read_access
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.errors import LedgerRefused
from orchestration.ledger.usage import add_usage
from tests.stack import ROOT

HOUR_US = 3_600_000_000
NO_KAFKA = {"TIDEMARK_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}


class Shell:
    """Runs `tidemark` in this process, with a home of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.ledger = open_ledger(f"sqlite:///{home}/ledger.db")

    def __call__(self, *arguments: str, **variables: str) -> Result:
        environment = {"TIDEMARK_HOME": str(self._home), **NO_KAFKA, **variables}
        return CliRunner().invoke(commands, arguments, env=environment)

    def done(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        result = self(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def document(self, *arguments: str) -> Any:
        """The one JSON document that a command prints."""
        return json.loads(self.done(*arguments, "--json"))

    def refused(self, *arguments: str) -> str:
        """What is told when the ledger refuses, which `main` prints in one line."""
        result = self(*arguments)
        assert isinstance(result.exception, LedgerRefused), result.output
        return str(result.exception)

    def misspelt(self, *arguments: str) -> str:
        """What is told when the command makes no sense."""
        result = self(*arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        return result.stderr


@pytest.fixture
def shell(settings: Any, tmp_path: Path) -> Shell:
    """The command line of an empty home."""
    return Shell(tmp_path)


def test_rotating_prints_both_tokens_and_the_end_of_the_old(shell: Shell) -> None:
    """The grace is a day unless it is said; both tokens are good meanwhile, and listed."""
    made = shell.document("projects", "create", "shop")
    assert made.keys() == {"project_id", "token"}
    before = time.time() * 1e6
    rotated = shell.document("projects", "rotate", "1")
    assert rotated.keys() == {"project_id", "token", "old_token", "old_token_good_until"}
    assert (rotated["project_id"], rotated["old_token"]) == (1, made["token"])
    grace = rotated["old_token_good_until"] - before
    assert 24 * HOUR_US <= grace < 25 * HOUR_US
    assert read_access(shell.ledger).tokens == {made["token"]: 1, rotated["token"]: 1}
    [listed] = shell.document("projects", "list")
    assert listed["token"] == rotated["token"]
    assert listed["retired_tokens"] == [
        {"token": made["token"], "good_until": rotated["old_token_good_until"]}
    ]
    assert f"also {made['token']}" in shell.done("projects", "list")


@pytest.mark.parametrize(
    ("grace", "microseconds"),
    [("90s", 90_000_000), ("30m", HOUR_US // 2), ("7d", 168 * HOUR_US)],
)
def test_a_grace_is_a_span_of_time(shell: Shell, grace: str, microseconds: int) -> None:
    """Seconds, minutes, hours and days; the text says until when the old token is good."""
    shell.done("projects", "create", "shop")
    before = time.time() * 1e6
    assert "is good until" in shell.done("projects", "rotate", "1", "--grace", grace)
    [until] = read_access(shell.ledger).good_until.values()
    assert microseconds <= until - before < microseconds + HOUR_US // 4


def test_no_grace_ends_the_old_token_at_once(shell: Shell) -> None:
    """`--grace 0` is for a token that has leaked: no old token is good any more."""
    shell.done("projects", "create", "shop")
    shell.done("projects", "rotate", "1")
    assert "bad from now on" in shell.done("projects", "rotate", "1", "--grace", "0")
    [listed] = shell.document("projects", "list")
    assert listed["retired_tokens"] == []
    assert read_access(shell.ledger).tokens == {listed["token"]: 1}


@pytest.mark.parametrize("grace", ["24", "-1h", "soon", "1.5h", "1w", "", "9999d"])
def test_a_bad_grace_changes_nothing(shell: Shell, grace: str) -> None:
    """What is no span of time is refused with what would be one."""
    made = shell.document("projects", "create", "shop")
    told = shell.misspelt("projects", "rotate", "1", f"--grace={grace}")
    assert "write 90s, 30m, 24h, 7d or 0" in told or "longer than 3650d" in told
    assert read_access(shell.ledger).tokens == {made["token"]: 1}


def test_a_token_stands_for_its_project(shell: Shell) -> None:
    """Wherever an id is asked for, a token of the project will do, an old one too."""
    old = shell.document("projects", "create", "shop")["token"]
    token = shell.document("projects", "rotate", old)["token"]
    assert shell.document("projects", "limit", old, "--burst", "5")["project_id"] == 1
    rule = shell.document("rules", "add", "--action", "drop", "--token", token, "--event", "e")
    assert rule["project_id"] == 1
    assert "project 1 (shop) is revoked" in shell.done("projects", "revoke", token)
    assert "is revoked" in shell.refused("projects", "rotate", "1")


@pytest.mark.parametrize(
    "arguments",
    [
        ("projects", "revoke"),
        ("projects", "rotate"),
        ("projects", "limit"),
        ("rules", "add", "--action", "drop", "--project"),
    ],
)
def test_an_unknown_project_is_told(shell: Shell, arguments: tuple[str, ...]) -> None:
    """An id and a token that no project has: the text says which, and where to look."""
    told = "see `tidemark projects list`"
    assert f"no project has the id 7: {told}" in shell.refused(*arguments, "7")
    assert f"no project has the token phc_x: {told}" in shell.refused(*arguments, "phc_x")
    assert "range" in shell.misspelt(*arguments, "9" * 30)


def test_limits_are_set_one_by_one_and_cleared(shell: Shell) -> None:
    """What is not named stays; clearing gives the project back to the settings."""
    shell.done("projects", "create", "shop")
    assert "the settings apply" in shell.done("projects", "limit", "1")
    shell.done("projects", "limit", "1", "--events-per-second", "2.5", "--burst", "100")
    limits = shell.document("projects", "limit", "1", "--daily-quota", "0")
    assert limits == {
        "project_id": 1,
        "events_per_second": 2.5,
        "burst": 100,
        "daily_quota": 0,
    }
    told = "2.5 events a second, 100 at once, any number of events a day"
    assert told in shell.done("projects", "limit", "1")
    assert told in shell.done("projects", "list")
    [listed] = shell.document("projects", "list")
    assert listed["limits"] == {"events_per_second": 2.5, "burst": 100, "daily_quota": 0}

    cleared = shell.document("projects", "limit", "1", "--clear", "--burst", "7")
    assert cleared == {
        "project_id": 1,
        "events_per_second": None,
        "burst": 7,
        "daily_quota": None,
    }
    shell.done("projects", "limit", "1", "--clear")
    assert read_access(shell.ledger).limits == {}


def test_a_limit_that_makes_no_sense_is_refused(shell: Shell) -> None:
    """Negative, endless and too large numbers, and words, are told."""
    shell.done("projects", "create", "shop")
    for option in ("--events-per-second", "--burst", "--daily-quota"):
        for value in ("-1", "many"):
            assert option in shell.misspelt("projects", "limit", "1", f"{option}={value}")
    assert "range" in shell.misspelt("projects", "limit", "1", "--burst", str(2**31))
    assert "no rate" in shell.refused("projects", "limit", "1", "--events-per-second", "inf")


def test_the_list_tells_the_events_of_today(shell: Shell) -> None:
    """State and usage of each project stand in the list, as text and as JSON."""
    for name in ("shop", "gone"):
        shell.done("projects", "create", name)
    shell.done("projects", "revoke", "2")
    add_usage(shell.ledger, datetime.now(UTC).date(), {1: 12_345})
    if not shell.document("projects", "list")[0]["events_today"]:  # midnight was in between
        add_usage(shell.ledger, datetime.now(UTC).date(), {1: 12_345})
    listed = shell.document("projects", "list")
    assert [(p["state"], p["events_today"]) for p in listed] == [("good", 12_345), ("revoked", 0)]
    assert "12,345 today  shop" in shell.done("projects", "list")


def test_a_rule_lives_from_dry_run_to_removal(shell: Shell) -> None:
    """Added as a dry run, enabled, removed; each step prints the rule."""
    shell.done("projects", "create", "shop")
    given = ("--project", "1", "--distinct-id", "bot", "--event", "$pageview", "--note", "a bot")
    rule = shell.document("rules", "add", "--action", "overflow", *given, "--dry-run")
    assert rule == {
        "rule_id": 1,
        "action": "overflow",
        "topic": None,
        "project_id": 1,
        "distinct_id": "bot",
        "event": "$pageview",
        "dry_run": True,
        "note": "a bot",
        "created_at": rule["created_at"],
    }
    described = "to the overflow topic: project 1, distinct_id 'bot', event '$pageview'  # a bot"
    assert f"dry run  {described}" in shell.done("rules", "list")
    assert shell.document("rules", "list") == [rule]
    assert f"enabled  {described}" in shell.done("rules", "enable", "1")
    assert shell.document("rules", "list") == [{**rule, "dry_run": False}]
    assert f"removed:      1  enabled  {described}" in shell.done("rules", "remove", "1")
    assert shell.document("rules", "list") == []
    assert "no rules" in shell.done("rules", "list")
    for step in ("enable", "remove"):
        assert "no rule has the id 1" in shell.refused("rules", step, "1")


def test_a_rule_for_everything_must_be_meant(shell: Shell) -> None:
    """Without a condition a rule is refused, unless it says so; nonsense is refused too."""
    assert "every event of every project" in shell.refused("rules", "add", "--action", "drop")
    assert "every event" in shell.done("rules", "add", "--action", "drop", "--everything")
    assert "give --topic" in shell.refused("rules", "add", "--action", "topic", "--event", "e")
    assert "--action" in shell.misspelt("rules", "add", "--action", "lose", "--event", "e")
    assert "--action" in shell.misspelt("rules", "add", "--event", "e")


def test_a_topic_that_kafka_lacks_is_told(shell: Shell, kafka: str) -> None:
    """The rule is made, and a warning on stderr says that the topic is missing or unchecked."""
    ensure_topic(kafka, "special", 1)
    there = {"TIDEMARK_KAFKA_BOOTSTRAP_SERVERS": kafka}
    add = ("rules", "add", "--action", "topic", "--event", "e", "--json", "--topic")
    found = shell(*add, "special", **there)
    assert (found.stderr, json.loads(found.stdout)["topic"]) == ("", "special")
    missing = shell(*add, "nowhere", **there)
    assert missing.exit_code == 0
    assert "warning: Kafka has no topic nowhere" in missing.stderr
    assert json.loads(missing.stdout)["rule_id"] == 2
    unasked = shell(*add, "special")
    assert unasked.exit_code == 0
    assert "did not say whether it has the topic special" in unasked.stderr
    again = shell("rules", "enable", "2", **there)
    assert "warning: Kafka has no topic nowhere" in again.stderr


def test_the_commands_of_the_page_work(shell: Shell) -> None:
    """Every command of docs/projects.md, one after the other, does what it says."""
    page = (ROOT / "docs" / "projects.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("    .venv/bin/tidemark ")]
    assert len(lines) > 15
    for line in lines:
        result = shell(*shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert [project["state"] for project in shell.document("projects", "list")] == [
        "good",
        "revoked",
    ]
    assert [rule["action"] for rule in shell.document("rules", "list")] == ["overflow", "topic"]
