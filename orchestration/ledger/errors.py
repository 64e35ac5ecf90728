"""What may be asked of the ledger in vain, with what to do instead; a driver's error in a line."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError


class LedgerRefused(Exception):
    """What was asked for cannot be done as it was asked."""


class UnknownProject(LedgerRefused, LookupError):
    """No project has that id or token."""


class UnknownRule(LedgerRefused, LookupError):
    """No rule has that id."""


class RevokedProject(LedgerRefused):
    """The project is revoked, and stays so."""


class BadLimit(LedgerRefused, ValueError):
    """A limit that makes no sense."""


class BadRule(LedgerRefused, ValueError):
    """A rule that makes no sense, or that would match everything without being told to."""


def in_one_line(error: Exception) -> str:
    """What the database or its driver says, without the lines that drivers and SQLAlchemy add."""
    reason = str(error.orig if isinstance(error, DBAPIError) else error)
    return next(iter(reason.strip().splitlines()), type(error).__name__)


def what_to_do(reason: str, variable: str) -> str:
    """What helps when a database gives that reason; `variable` is the setting that names it."""
    advice = (text for signs, text in _ADVICE if any(sign in reason for sign in signs))
    return next(advice, f"see {variable}").format(variable=variable)


_ADVICE = (
    (
        ("is not a database", "is malformed"),
        "the file is damaged: put a copy of it in its place, and see {variable}",
    ),
    (("disk is full", "No space left"), "make room on its disk"),
    (
        ("readonly database", "unable to open database file"),
        "let this user write its folder, or see {variable}",
    ),
    (("database is locked",), "another process holds it: try again, or end that one"),
    (("authentication failed",), "see user and password in {variable}"),
)
"""What SQLite and PostgreSQL say, and what helps."""
