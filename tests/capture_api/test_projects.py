"""Tokens, their copy and daily usage at a running edge, with and without a ledger."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from capture_api.projects import MAX_WAITING_TOKENS
from orchestration.ledger.projects import (
    Limits,
    create_project,
    revoke_project,
    rotate_token,
    set_limits,
)
from orchestration.ledger.rules import Action, add_rule
from orchestration.ledger.usage import usage_of

EVENT = {"event": "e", "distinct_id": "d"}
OFTEN = {"TIDEMARK_CAPTURE_PROJECT_REFRESH_SECONDS": "0.1"}
SECOND_US = 1_000_000


def send(capture: Any, token: str, events: int = 1) -> int:
    """The status of a batch with that token."""
    body = {"api_key": token, "batch": [EVENT] * events}
    status: int = capture.client.post("/batch", json=body).status_code
    return status


def take_ledger_away(home: Path) -> Callable[[], None]:
    """Make the ledger unreadable; gives the way back."""
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (home / name).unlink(missing_ok=True)
    ledger, aside = home / "ledger.db", home / "ledger.aside"
    ledger.rename(aside)
    ledger.mkdir()  # a folder cannot be opened as a database

    def bring_back() -> None:
        ledger.rmdir()
        aside.rename(ledger)

    return bring_back


def copy_of(capture: Any) -> dict[str, Any]:
    """What the file says that survives a restart, or nothing."""
    path = capture.home / "capture" / "access.json"
    if not path.exists():
        return {}
    access: dict[str, Any] = json.loads(path.read_bytes())["access"]
    return access


@pytest.fixture(scope="module")
def shared(kafka: str, new_capture: Callable[..., Any]) -> Any:
    """A running capture API that looks at the ledger often, for tests that leave it as it was."""
    return new_capture(kafka, **OFTEN).start()


def test_rotated_tokens_end_when_their_grace_does(shared: Any, until: Any) -> None:
    """New and old token work during the grace; then the old one is a 401, the new one is not."""
    before = create_project(shared.ledger, "rotating")
    assert send(shared, before.token) == 200
    after, retired = rotate_token(shared.ledger, before.project_id, 3 * SECOND_US)
    assert send(shared, after.token) == 200
    if time.time() * SECOND_US < retired.good_until - SECOND_US:  # not held up by the machine
        assert send(shared, before.token) == 200
    until(lambda: send(shared, before.token) == 401, "the old token has ended")
    assert time.time() * SECOND_US >= retired.good_until
    assert send(shared, after.token) == 200


def test_a_leaked_token_ends_at_once(shared: Any, until: Any) -> None:
    """Without grace the old token is refused from the next look on."""
    before = create_project(shared.ledger, "leaked")
    assert send(shared, before.token) == 200
    after, _ = rotate_token(shared.ledger, before.project_id, 0)
    until(lambda: send(shared, before.token) == 401, "the old token has ended")
    assert send(shared, after.token) == 200


def test_retired_tokens_end_without_the_ledger(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """A token's end comes at its time even though the ledger is away; others stay good."""
    capture = new_capture(kafka, **OFTEN).start()
    old = capture.project.token
    new, retired = rotate_token(capture.ledger, capture.project.project_id, 4 * SECOND_US)
    until(lambda: old in copy_of(capture).get("good_until", {}), "the rotation was seen")
    take_ledger_away(capture.home)
    assert send(capture, old) == 200
    until(lambda: send(capture, old) != 200, "the old token has ended")
    assert time.time() * SECOND_US >= retired.good_until
    assert send(capture, new.token) == 200


def test_a_restart_needs_no_ledger(kafka: str, new_capture: Callable[..., Any], until: Any) -> None:
    """Without the ledger a restarted server is ready and says how old what it knows is.

    A token that is new is 503, since nobody can judge it; when the ledger is back, it is judged.
    """
    capture = new_capture(kafka, **OFTEN).start()
    project_id = capture.project.project_id
    set_limits(capture.ledger, project_id, Limits(1_000.0, 50, 10_000))
    add_rule(capture.ledger, Action.DROP, project_id=project_id, event="never", dry_run=True)
    revoked = create_project(capture.ledger, "revoked")
    revoke_project(capture.ledger, revoked.project_id)
    until(lambda: copy_of(capture).get("rules"), "the copy has the rule")
    path = capture.home / "capture" / "access.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert copy_of(capture)["tokens"] == {capture.token: project_id}

    bring_back = take_ledger_away(capture.home)
    assert capture.restart() == 0
    assert capture.status("/_readiness") == 200
    assert send(capture, capture.token) == 200
    assert send(capture, "phc_new") == 503
    assert "going on with the copy in" in capture.log()
    assert " s old (1 tokens)" in capture.log()

    bring_back()
    until(lambda: send(capture, "phc_new") == 401, "new tokens are judged again")
    assert send(capture, revoked.token) == 401
    assert send(capture, capture.token) == 200


@pytest.mark.parametrize("damage", ["missing", "cut", "newer", "another ledger"])
def test_a_copy_that_cannot_be_used_is_told(
    kafka: str, new_capture: Callable[..., Any], until: Any, damage: str
) -> None:
    """Without a ledger and a sound copy of it the server is not ready, and the log says why."""
    capture = new_capture(kafka, **OFTEN).start()
    until(lambda: copy_of(capture).get("tokens"), "there is a copy")
    assert capture.stop_process() == 0
    path = capture.home / "capture" / "access.json"
    content = path.read_bytes()
    told = {
        "missing": "there is no copy yet",
        "cut": "cannot be read",
        "newer": "is of version 99",
        "another ledger": "is the copy of another ledger",
    }[damage]
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "newer":
            path.write_bytes(content.replace(b'"version":1', b'"version":99'))
        case _:
            ledger = json.loads(content)["ledger"].encode()
            path.write_bytes(content.replace(ledger, b"0" * len(ledger)))
    bring_back = take_ledger_away(capture.home)
    capture.start(ready=False)
    until(lambda: told in capture.log(), "the log says what is wrong with the copy")
    assert capture.status("/_readiness") == 503
    assert send(capture, capture.token) == 503
    bring_back()
    until(lambda: capture.status("/_readiness") == 200, "the server is ready")
    assert send(capture, capture.token) == 200


def test_the_copy_is_written_only_at_a_change(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """Looks that find nothing new leave the file's content; a file that was removed comes back."""
    capture = new_capture(kafka, **OFTEN).start()
    until(lambda: copy_of(capture).get("tokens"), "there is a copy")
    path = capture.home / "capture" / "access.json"
    first = path.stat()
    until(lambda: path.stat().st_mtime_ns > first.st_mtime_ns, "a look has confirmed the copy")
    assert path.stat().st_ino == first.st_ino
    project = create_project(capture.ledger, "new")
    until(lambda: project.token in copy_of(capture)["tokens"], "the copy has the new project")
    assert path.stat().st_ino != first.st_ino
    path.unlink()
    until(lambda: project.token in copy_of(capture).get("tokens", {}), "the copy is back")
    assert [entry.name for entry in path.parent.glob("access.json*")] == ["access.json"]


def test_a_home_that_cannot_be_written_stops_nothing(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """Where no copy can be kept the server works, and says once what that means."""
    capture = new_capture(kafka, **OFTEN)
    (capture.home / "capture").write_text("a file where the folder should be")
    capture.start()
    project = create_project(capture.ledger, "new")
    assert send(capture, project.token) == 200
    revoke_project(capture.ledger, project.project_id)
    until(lambda: send(capture, project.token) == 401, "changes are seen")
    assert capture.log().count("no copy of the projects can be kept") == 1


@pytest.mark.parametrize("mode", ["dry_run", "off"])
def test_unknown_tokens_can_be_let_in(
    kafka: str, new_capture: Callable[..., Any], until: Any, mode: str
) -> None:
    """Their events are taken in under project 0; new projects work at once, known ones as ever."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_UNKNOWN_TOKENS=mode, **OFTEN).start()
    project = create_project(capture.ledger, "new")
    for token, project_id in (
        ("phc_nobody", 0),
        ("phc_nobody", 0),
        (project.token, project.project_id),
        (capture.token, capture.project.project_id),
    ):
        response = capture.client.post("/batch", json={"api_key": token, "batch": [EVENT]})
        assert response.status_code == 200
        [record] = capture.records_of(response)
        assert (record.value["project_id"], record.key) == (project_id, f"{token}:d")
    assert ("would be refused with 401" in capture.log()) == (mode == "dry_run")
    take_ledger_away(capture.home)
    assert send(capture, "phc_somebody") == 200


def test_a_flood_of_unknown_tokens_holds_up_nobody(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """While clients send ever new tokens, known and fresh projects are served."""
    capture = new_capture(kafka).start()
    stop = threading.Event()
    statuses: set[int] = set()

    def flood(number: int) -> None:
        count = 0
        while not stop.is_set():
            statuses.add(send(capture, f"phc_{number}_{count}"))
            count += 1

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: 401 in statuses, "unknown tokens are refused")
        for number in range(3):
            project = create_project(capture.ledger, f"new {number}")
            assert send(capture, project.token) == 200
            assert send(capture, capture.token) == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(threads) < MAX_WAITING_TOKENS
    assert statuses == {401}


def test_daily_usage_is_shared(
    kafka: str, new_capture: Callable[..., Any], until: Any, utc_day: Callable[[], date]
) -> None:
    """Two servers on one ledger add up to one total, and a restart forgets nothing of it."""
    one = new_capture(kafka, **OFTEN).start()
    other = new_capture(kafka, TIDEMARK_LEDGER_URL=f"sqlite:///{one.home}/ledger.db", **OFTEN)
    other.start()
    day, project_id = utc_day(), one.project.project_id
    assert [send(one, one.token, 2_000) for _ in range(3)] == [200] * 3
    assert [send(other, one.token, 2_000) for _ in range(2)] == [200] * 2
    until(lambda: usage_of(one.ledger, day) == {project_id: 10_000}, "both have added theirs")

    assert send(other, one.token, 50) == 200
    assert other.restart() == 0  # the first process adds what is left
    assert usage_of(one.ledger, day) == {project_id: 10_050}
    set_limits(one.ledger, project_id, Limits(daily_quota=10_050))
    for capture in (one, other):
        until(lambda c=capture: is_over_quota(c, one.token), "the quota of both is used up")
    assert usage_of(one.ledger, day)[project_id] < 12_000  # neither has filled it alone


def test_usage_counted_without_the_ledger_is_added_later(
    kafka: str, new_capture: Callable[..., Any], until: Any, utc_day: Callable[[], date]
) -> None:
    """While the ledger is away events are counted, and the count comes when it is back."""
    capture = new_capture(kafka, **OFTEN).start()
    day, project_id = utc_day(), capture.project.project_id
    bring_back = take_ledger_away(capture.home)
    assert send(capture, capture.token, 5) == 200
    until(lambda: "daily usage cannot be shared" in capture.log(), "sharing was tried")
    assert send(capture, capture.token, 2) == 200
    bring_back()
    until(lambda: usage_of(capture.ledger, day) == {project_id: 7}, "all seven were added")


def is_over_quota(capture: Any, token: str) -> bool:
    """Whether the server says that the quota is used up; one event more if it does not."""
    response = capture.client.post("/batch", json={"api_key": token, "batch": [EVENT]})
    assert response.status_code == 200
    return "quota_limited" in response.json()


@pytest.fixture
def utc_day(until: Any) -> Callable[[], date]:
    """Gives the UTC day of a test, and does not begin one a minute before midnight."""

    def day() -> date:
        until(
            lambda: (datetime.now(UTC) + timedelta(minutes=1)).day == datetime.now(UTC).day,
            "it is past midnight",
            90,
        )
        return datetime.now(UTC).date()

    return day
