"""Projects: a token is good from creation until it is rotated out or revoked."""

from __future__ import annotations

import math
import threading
import time

import pytest
from sqlalchemy import Engine, insert, inspect

from orchestration.ledger.access import any_good, read_access
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.errors import BadLimit, RevokedProject, UnknownProject
from orchestration.ledger.projects import (
    Limits,
    Project,
    all_limits,
    create_project,
    find_project,
    list_projects,
    list_retired_tokens,
    revoke_project,
    rotate_token,
    set_limits,
)
from orchestration.ledger.rules import Action, add_rule
from orchestration.ledger.tables import metadata, projects

HOUR_US = 3_600_000_000

NEW_TABLES = ("retired_tokens", "project_limits", "rules", "daily_usage")
"""Tables that ledgers of the first version do not have."""


def test_a_new_project_has_a_token_of_its_own(ledger: Engine) -> None:
    """Projects of the same name are two projects, with two tokens."""
    one, other = create_project(ledger, "shop"), create_project(ledger, "shop")
    assert one.token != other.token
    assert one.token.startswith("phc_")
    assert one.project_id != other.project_id
    assert read_access(ledger).tokens == {
        one.token: one.project_id,
        other.token: other.project_id,
    }
    assert list_projects(ledger) == [one, other]


def test_a_revoked_token_is_bad_and_stays_listed(ledger: Engine) -> None:
    """Revoking ends the token and keeps the project, with the time."""
    one, other = create_project(ledger, "one"), create_project(ledger, "other")
    revoked = revoke_project(ledger, one.project_id)
    assert revoked.revoked_at is not None
    assert read_access(ledger).tokens == {other.token: other.project_id}
    assert list_projects(ledger) == [revoked, other]


def test_an_unknown_project_is_named(ledger: Engine) -> None:
    """The error names the id and the command that lists projects, whatever was asked for."""
    told = "no project has the id 7: see `tidemark projects"
    with pytest.raises(UnknownProject, match=told):
        revoke_project(ledger, 7)
    with pytest.raises(UnknownProject, match=told):
        rotate_token(ledger, 7, 0)
    with pytest.raises(UnknownProject, match=told):
        set_limits(ledger, 7, Limits(burst=1))
    with pytest.raises(UnknownProject, match=told):
        find_project(ledger, "7")


def test_projects_outlive_the_process(ledger: Engine, ledger_url: str) -> None:
    """Another engine on the same database sees what the first one wrote."""
    project = create_project(ledger, "shop")
    again = open_ledger(ledger_url)
    assert list_projects(again) == [project]
    again.dispose()


def test_both_tokens_are_good_while_the_grace_lasts(ledger: Engine) -> None:
    """Rotating gives a new token at once; the old one is good, and says until when."""
    before = create_project(ledger, "shop")
    earliest = now_us() + HOUR_US
    after, retired = rotate_token(ledger, before.project_id, HOUR_US)
    assert after.token not in (before.token, "")
    assert (retired.token, retired.project_id) == (before.token, before.project_id)
    assert earliest <= retired.good_until <= now_us() + HOUR_US
    access = read_access(ledger)
    assert access.tokens == {before.token: before.project_id, after.token: before.project_id}
    assert access.good_until == {before.token: retired.good_until}
    assert any_good(ledger, ["nobody", before.token])
    assert list_retired_tokens(ledger) == [retired]


def test_without_grace_the_old_tokens_end_at_once(ledger: Engine) -> None:
    """A rotation without grace ends the old token, and those that were in their grace."""
    project = create_project(ledger, "leaked")
    second, _ = rotate_token(ledger, project.project_id, 24 * HOUR_US)
    third, _ = rotate_token(ledger, project.project_id, 0)
    assert read_access(ledger).tokens == {third.token: project.project_id}
    assert not any_good(ledger, [project.token, second.token])
    assert any_good(ledger, [third.token])


def test_a_longer_grace_gives_no_old_token_more_time(ledger: Engine) -> None:
    """A token that is in its grace keeps its end when the project is rotated again."""
    project = create_project(ledger, "shop")
    second, first_end = rotate_token(ledger, project.project_id, HOUR_US)
    _, second_end = rotate_token(ledger, project.project_id, 5 * HOUR_US)
    assert read_access(ledger).good_until == {
        project.token: first_end.good_until,
        second.token: second_end.good_until,
    }


def test_revoking_ends_retired_tokens_too(ledger: Engine) -> None:
    """No token of a revoked project is good, and it gets no new one."""
    project = create_project(ledger, "shop")
    rotate_token(ledger, project.project_id, HOUR_US)
    revoke_project(ledger, project.project_id)
    assert read_access(ledger).tokens == {}
    assert not any_good(ledger, [project.token])
    with pytest.raises(RevokedProject, match="is revoked"):
        rotate_token(ledger, project.project_id, HOUR_US)


def test_a_project_is_found_by_any_of_its_tokens(ledger: Engine) -> None:
    """An id, the token and a retired token lead to the same project."""
    create_project(ledger, "other")
    project = create_project(ledger, "shop")
    rotated, _ = rotate_token(ledger, project.project_id, 0)
    for name in (str(project.project_id), project.token, rotated.token):
        assert find_project(ledger, name) == rotated
    for name in ("phc_nobody", "0", "9" * 30):
        with pytest.raises(UnknownProject, match=name):
            find_project(ledger, name)


def test_rotations_at_once_lose_no_token(ledger: Engine) -> None:
    """Two rotations at the same moment follow each other: every token is either old or new."""
    project = create_project(ledger, "shop")
    made: list[Project] = []

    def rotate() -> None:
        made.append(rotate_token(ledger, project.project_id, HOUR_US)[0])

    threads = [threading.Thread(target=rotate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_access(ledger).tokens) == {project.token, *(rotated.token for rotated in made)}
    assert len(made) == 8


def test_a_project_has_limits_of_its_own(ledger: Engine) -> None:
    """What is set replaces what was; nothing set leaves no row."""
    one, other = create_project(ledger, "one"), create_project(ledger, "other")
    set_limits(ledger, one.project_id, Limits(0.5, 10, 1 << 40))
    set_limits(ledger, other.project_id, Limits(daily_quota=0))
    expected = {
        one.project_id: Limits(0.5, 10, 1 << 40),
        other.project_id: Limits(None, None, 0),
    }
    assert all_limits(ledger) == read_access(ledger).limits == expected
    set_limits(ledger, one.project_id, Limits(burst=7))
    set_limits(ledger, other.project_id, Limits())
    assert all_limits(ledger) == {one.project_id: Limits(None, 7, None)}


@pytest.mark.parametrize(
    "limits",
    [
        Limits(events_per_second=-1),
        Limits(events_per_second=math.nan),
        Limits(events_per_second=math.inf),
        Limits(burst=-1),
        Limits(burst=2**31),
        Limits(daily_quota=-1),
        Limits(daily_quota=2**63),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(ledger: Engine, limits: Limits) -> None:
    """Negative, endless and too large numbers are no limits, and nothing is kept of them."""
    project = create_project(ledger, "shop")
    with pytest.raises(BadLimit):
        set_limits(ledger, project.project_id, limits)
    assert all_limits(ledger) == {}


def test_access_is_of_one_moment(ledger: Engine) -> None:
    """While projects are rotated without end, every reading has exactly one current token."""
    project = create_project(ledger, "shop")
    stop = threading.Event()

    def rotate() -> None:
        while not stop.is_set():
            rotate_token(ledger, project.project_id, 0)

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        seen = set()
        end = time.monotonic() + 30
        while len(seen) < 5 and time.monotonic() < end:
            tokens = read_access(ledger).tokens
            assert len(tokens) == 1
            seen |= set(tokens)
        assert len(seen) == 5
    finally:
        stop.set()
        thread.join()


def test_a_ledger_of_the_first_version_goes_on(ledger: Engine, ledger_url: str) -> None:
    """Opening a ledger without the newer tables adds them and leaves its projects as they were."""
    old = [table for table in metadata.tables.values() if table.name in NEW_TABLES]
    metadata.drop_all(ledger, old)
    with ledger.begin() as connection:
        row = {"name": "old", "token": "phc_old", "created_at": 1, "revoked_at": None}
        connection.execute(insert(projects).values(**row))
    assert not set(NEW_TABLES) & set(inspect(ledger).get_table_names())

    opened = open_ledger(ledger_url)
    assert set(NEW_TABLES) <= set(inspect(opened).get_table_names())
    assert read_access(opened).tokens == {"phc_old": 1}
    rotated, _ = rotate_token(opened, 1, HOUR_US)
    set_limits(opened, 1, Limits(daily_quota=5))
    rule = add_rule(opened, Action.DROP, project_id=1)
    access = read_access(opened)
    assert access.tokens == {"phc_old": 1, rotated.token: 1}
    assert (access.limits, access.rules) == ({1: Limits(daily_quota=5)}, (rule,))
    opened.dispose()
