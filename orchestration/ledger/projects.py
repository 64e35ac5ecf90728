"""Projects: who may send events, with which tokens, and how many.

A project has one token at a time. Rotating gives it a new one and retires the old one, which is
good until its grace is over. Revoking ends them all. `Limits` are a project's own; what they
leave open is decided by the deployment's settings.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import astuple, dataclass

from sqlalchemy import Connection, Engine, delete, insert, select, union_all, update

from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.errors import BadLimit, RevokedProject, UnknownProject
from orchestration.ledger.tables import project_limits, projects, retired_tokens

TOKEN_PREFIX = "phc_"  # what PostHog's SDKs and their users expect of a project token

MAX_PROJECT_ID = 2**31 - 1
MAX_BURST = 2**31 - 1
MAX_DAILY_QUOTA = 2**63 - 1


@dataclass(frozen=True)
class Project:
    """One project. `revoked_at` (µs) is None while its token is good."""

    project_id: int
    name: str
    token: str
    created_at: int
    revoked_at: int | None


@dataclass(frozen=True)
class RetiredToken:
    """A token that its project had before. It is good until `good_until` (µs)."""

    token: str
    project_id: int
    good_until: int


@dataclass(frozen=True)
class Limits:
    """A project's own limits. None: the deployment's setting applies. 0: no limit (burst: what
    the rate allows in ten seconds)."""

    events_per_second: float | None = None
    burst: int | None = None
    daily_quota: int | None = None


NO_LIMITS = Limits()
"""No limits of its own: the deployment's settings apply."""


def create_project(ledger: Engine, name: str) -> Project:
    """A new project with a fresh token."""
    with ledger.begin() as connection:
        row = connection.execute(
            insert(projects)
            .values(name=name, token=_new_token(), created_at=now_us())
            .returning(*projects.c)
        ).one()
    return Project(*row)


def list_projects(ledger: Engine) -> list[Project]:
    """All projects, the revoked ones included, in order of creation."""
    with reading(ledger) as connection:
        rows = connection.execute(select(projects).order_by(projects.c.project_id)).all()
    return [Project(*row) for row in rows]


def find_project(ledger: Engine, id_or_token: str) -> Project:
    """The project with that id, or with that token now or before. Raises UnknownProject."""
    is_id = id_or_token.isdecimal()
    with reading(ledger) as connection:
        if is_id:
            wanted = min(int(id_or_token), MAX_PROJECT_ID)
            row = connection.execute(
                select(projects).where(projects.c.project_id == wanted)
            ).one_or_none()
        else:
            holders = union_all(
                select(projects.c.project_id).where(projects.c.token == id_or_token),
                select(retired_tokens.c.project_id).where(retired_tokens.c.token == id_or_token),
            )
            row = connection.execute(
                select(projects).where(projects.c.project_id.in_(holders))
            ).one_or_none()
    if row is None:
        what = "the id" if is_id else "the token"
        raise UnknownProject(f"no project has {what} {id_or_token}: see `tidemark projects list`")
    return Project(*row)


def revoke_project(ledger: Engine, project_id: int) -> Project:
    """Make the project's tokens bad from now on. Raises UnknownProject."""
    with ledger.begin() as connection:
        row = connection.execute(
            update(projects)
            .where(projects.c.project_id == project_id)
            .values(revoked_at=now_us())
            .returning(*projects.c)
        ).one_or_none()
    if row is None:
        raise _unknown(project_id)
    return Project(*row)


def rotate_token(ledger: Engine, project_id: int, grace_us: int) -> tuple[Project, RetiredToken]:
    """Give the project a new token; the old one, and older ones, are good for the grace at most.

    Raises UnknownProject or RevokedProject.
    """
    good_until = now_us() + grace_us
    with ledger.begin() as connection:
        old = _project(connection, project_id)
        if old.revoked_at is not None:
            raise RevokedProject(
                f"project {project_id} ({old.name}) is revoked, and a new token would be too: "
                "make a project with `tidemark projects create NAME`"
            )
        connection.execute(
            update(retired_tokens)
            .where(retired_tokens.c.project_id == project_id)
            .where(retired_tokens.c.good_until > good_until)
            .values(good_until=good_until)
        )
        retired = RetiredToken(old.token, project_id, good_until)
        connection.execute(insert(retired_tokens).values(astuple(retired)))
        row = connection.execute(
            update(projects)
            .where(projects.c.project_id == project_id)
            .values(token=_new_token())
            .returning(*projects.c)
        ).one()
    return Project(*row), retired


def list_retired_tokens(ledger: Engine) -> list[RetiredToken]:
    """All tokens that projects had before, the one that is good the longest first."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(retired_tokens).order_by(
                retired_tokens.c.good_until.desc(), retired_tokens.c.token
            )
        ).all()
    return [RetiredToken(*row) for row in rows]


def set_limits(ledger: Engine, project_id: int, limits: Limits) -> None:
    """Replace the project's own limits. Raises UnknownProject or BadLimit."""
    rate, burst, quota = astuple(limits)
    if rate is not None and not (math.isfinite(rate) and rate >= 0):
        raise BadLimit(f"{rate} events per second is no rate: give 0 (no limit) or more")
    for value, most, name in (
        (burst, MAX_BURST, "burst"),
        (quota, MAX_DAILY_QUOTA, "daily quota"),
    ):
        if value is not None and not 0 <= value <= most:
            raise BadLimit(f"a {name} of {value} cannot be: give a number from 0 to {most}")
    with ledger.begin() as connection:
        _project(connection, project_id)
        connection.execute(delete(project_limits).where(project_limits.c.project_id == project_id))
        if limits != NO_LIMITS:
            connection.execute(insert(project_limits).values((project_id, *astuple(limits))))


def all_limits(ledger: Engine) -> dict[int, Limits]:
    """The limits of every project that has some of its own."""
    with reading(ledger) as connection:
        return limits_in(connection)


def limits_in(connection: Connection) -> dict[int, Limits]:
    """`all_limits` inside a transaction."""
    rows = connection.execute(select(project_limits).order_by(project_limits.c.project_id)).all()
    return {project_id: Limits(*limits) for project_id, *limits in rows}


def _project(connection: Connection, project_id: int) -> Project:
    """The project's row, locked until the transaction ends."""
    row = connection.execute(
        select(projects).where(projects.c.project_id == project_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise _unknown(project_id)
    return Project(*row)


def _unknown(project_id: int) -> UnknownProject:
    return UnknownProject(f"no project has the id {project_id}: see `tidemark projects list`")


def _new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)
