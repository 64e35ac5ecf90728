"""Access: all that the edge needs to know of projects, read at one moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Engine, select

from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.projects import Limits, limits_in
from orchestration.ledger.rules import Rule, rules_in
from orchestration.ledger.tables import projects, retired_tokens


@dataclass(frozen=True)
class Access:
    """The good tokens and their projects, the limits of those that have their own, the rules.

    `tokens` has the retired tokens too while they are good; `good_until` (µs) says of these when
    that ends. `read_at` (µs) is when the ledger said so.
    """

    tokens: dict[str, int]
    limits: dict[int, Limits]
    rules: tuple[Rule, ...]
    read_at: int
    good_until: dict[str, int] = field(default_factory=dict)


NO_ACCESS = Access({}, {}, (), 0)
"""What is known before anything was read."""


def read_access(ledger: Engine) -> Access:
    """Read it all in one transaction."""
    with reading(ledger, snapshot=True) as connection:
        read_at = now_us()
        good = projects.c.revoked_at.is_(None)
        tokens = dict(
            connection.execute(select(projects.c.token, projects.c.project_id).where(good)).all()
        )
        retired = connection.execute(
            select(retired_tokens)
            .join(projects, retired_tokens.c.project_id == projects.c.project_id)
            .where(good, retired_tokens.c.good_until > read_at)
        ).all()
        # One that has ended since this transaction began is not good either.
        retired = [row for row in retired if row.good_until > now_us()]
        tokens |= {row.token: row.project_id for row in retired}
        good_until = {row.token: row.good_until for row in retired}
        return Access(tokens, limits_in(connection), rules_in(connection), read_at, good_until)


def any_good(ledger: Engine, tokens: Iterable[str]) -> bool:
    """Whether one of the tokens is good by now: a cheap look, however many projects there are."""
    asked = list(tokens)
    with reading(ledger) as connection:
        if connection.scalar(
            select(projects.c.project_id)
            .where(projects.c.token.in_(asked), projects.c.revoked_at.is_(None))
            .limit(1)
        ):
            return True
        retired = connection.scalar(
            select(projects.c.project_id)
            .join(retired_tokens, retired_tokens.c.project_id == projects.c.project_id)
            .where(
                retired_tokens.c.token.in_(asked),
                retired_tokens.c.good_until > now_us(),
                projects.c.revoked_at.is_(None),
            )
            .limit(1)
        )
        return retired is not None
