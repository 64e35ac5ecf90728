"""What Linux says of a process by its pid."""

from __future__ import annotations

from pathlib import Path


def stat_of(pid: int) -> list[str]:
    """The words of /proc/PID/stat from the state on: state, parent, …; the 20th is its birth.

    Raises OSError where there is no such process, or no /proc.
    """
    # The name in parentheses may hold blanks; state is the first word behind it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
