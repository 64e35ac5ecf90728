"""What a person may ask of the ledger in vain. The text of each says what to do instead."""

from __future__ import annotations


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
