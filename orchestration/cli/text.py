"""Text of commands for a person: labelled lines within the width of a terminal, times, sizes."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime

WIDTH = 100
_LABEL = 10


def labelled(label: str, told: str) -> list[str]:
    """A line that begins with a label, folded where it is too long. Words are not cut."""
    return textwrap.wrap(
        told,
        WIDTH,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * (_LABEL + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def utc_text(microseconds: int) -> str:
    """A time as UTC."""
    return f"{datetime.fromtimestamp(microseconds / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(microseconds: int | None) -> str | None:
    """A time for a document."""
    if microseconds is None:
        return None
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")


def exact_iso(microseconds: int | None) -> str | None:
    """A time of the ledger for a document, to the microsecond."""
    if microseconds is None:
        return None
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat()


def span_text(microseconds: int) -> str:
    """A span of time in the unit that suits it."""
    seconds = max(0.0, microseconds / 1e6)
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def bytes_text(size: int) -> str:
    """A size in the unit that suits it."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1_000:
            return f"{amount:.0f} {unit}"
        amount /= 1_000
    return f"{amount:,.1f} TB"
