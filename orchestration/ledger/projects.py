"""Projects: who may send events, and with which token."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update

from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.tables import projects

TOKEN_PREFIX = "phc_"  # what PostHog's SDKs and their users expect of a project token


class UnknownProject(LookupError):
    """No project has that id or token."""


@dataclass(frozen=True)
class Project:
    """One project. `revoked_at` (µs) is None while its token is good."""

    project_id: int
    name: str
    token: str
    created_at: int
    revoked_at: int | None


def create_project(ledger: Engine, name: str) -> Project:
    """A new project with a fresh token."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with ledger.begin() as connection:
        row = connection.execute(
            insert(projects)
            .values(name=name, token=token, created_at=now_us())
            .returning(*projects.c)
        ).one()
    return Project(*row)


def list_projects(ledger: Engine) -> list[Project]:
    """All projects, the revoked ones included, in order of creation."""
    with reading(ledger) as connection:
        rows = connection.execute(select(projects).order_by(projects.c.project_id)).all()
    return [Project(*row) for row in rows]


def revoke_project(ledger: Engine, project_id: int) -> Project:
    """Make the project's token bad from now on. Raises UnknownProject."""
    with ledger.begin() as connection:
        row = connection.execute(
            update(projects)
            .where(projects.c.project_id == project_id)
            .values(revoked_at=now_us())
            .returning(*projects.c)
        ).one_or_none()
    if row is None:
        raise UnknownProject(f"no project has the id {project_id}: see `tidemark projects list`")
    return Project(*row)


def known_tokens(ledger: Engine) -> dict[str, int]:
    """Every good token and the project_id it stands for."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(projects.c.token, projects.c.project_id).where(projects.c.revoked_at.is_(None))
        ).all()
    return dict(rows)
