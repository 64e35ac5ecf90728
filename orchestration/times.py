"""Times and spans of the ledger, which are microseconds (since 1970, UTC), as others read them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(microseconds: int) -> datetime:
    """A time of the ledger."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


def utc_text(microseconds: int) -> str:
    """A time for a person."""
    return f"{utc(microseconds):%Y-%m-%d %H:%M:%S} UTC"


def iso(microseconds: int | None, timespec: str = "milliseconds") -> str | None:
    """A time for a document."""
    return None if microseconds is None else utc(microseconds).isoformat(timespec=timespec)


def exact_iso(microseconds: int | None) -> str | None:
    """A time of the ledger for a document, to the microsecond."""
    return iso(microseconds, "auto")


def span_text(microseconds: int) -> str:
    """A span of time in the unit that suits it."""
    seconds = max(0.0, microseconds / 1e6)
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"
