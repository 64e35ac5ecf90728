"""Text of commands for a person: labelled lines within the width of a terminal, sizes."""

from __future__ import annotations

import textwrap

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


def bytes_text(size: int) -> str:
    """A size in the unit that suits it."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1_000:
            return f"{amount:.0f} {unit}"
        amount /= 1_000
    return f"{amount:,.1f} TB"
