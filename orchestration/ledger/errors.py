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
