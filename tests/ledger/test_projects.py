"""Projects: a token is good from creation until it is revoked."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import (
    UnknownProject,
    create_project,
    known_tokens,
    list_projects,
    revoke_project,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Engine:
    """An empty ledger."""
    return open_ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_a_new_project_has_a_token_of_its_own(ledger: Engine) -> None:
    """Projects of the same name are two projects, with two tokens."""
    one, other = create_project(ledger, "shop"), create_project(ledger, "shop")
    assert one.token != other.token
    assert one.token.startswith("phc_")
    assert one.project_id != other.project_id
    assert known_tokens(ledger) == {one.token: one.project_id, other.token: other.project_id}
    assert list_projects(ledger) == [one, other]


def test_a_revoked_token_is_bad_and_stays_listed(ledger: Engine) -> None:
    """Revoking ends the token and keeps the project, with the time."""
    one, other = create_project(ledger, "one"), create_project(ledger, "other")
    revoked = revoke_project(ledger, one.project_id)
    assert revoked.revoked_at is not None
    assert known_tokens(ledger) == {other.token: other.project_id}
    assert list_projects(ledger) == [revoked, other]


def test_an_unknown_project_cannot_be_revoked(ledger: Engine) -> None:
    """The error names the id and the command that lists projects."""
    with pytest.raises(UnknownProject, match="no project has the id 7: see `tidemark projects"):
        revoke_project(ledger, 7)


def test_projects_outlive_the_process(ledger: Engine, tmp_path: Path) -> None:
    """Another engine on the same file sees what the first one wrote."""
    project = create_project(ledger, "shop")
    again = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    assert list_projects(again) == [project]
