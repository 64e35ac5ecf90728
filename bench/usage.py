"""What a process has used: processor seconds and the most memory it ever held, from /proc.

Data flow: a pid → `Usage`, the sum over the process and all its descendants.
Invariant: a process that has been reaped is counted with its parent, so a helper that ended
between two looks is in the difference all the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchFailed

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of a process and its descendants: `cpu_s` since they began, `peak_bytes` resident."""

    cpu_s: float
    peak_bytes: int


def require_proc() -> None:
    """Raise BenchFailed where there is no /proc to read."""
    if sys.platform != "linux":
        raise BenchFailed("the figures come from /proc: run this on Linux, or in a container")


def usage_of(pid: int) -> Usage:
    """What the process and its descendants have used up to now."""
    cpu_s = _family_cpu_s(pid)
    return Usage(cpu_s=sum(cpu_s.values()), peak_bytes=sum(map(peak_bytes, cpu_s)))


def resident_bytes_of(pid: int) -> int:
    """The memory that the largest of the process and its descendants holds now."""
    return max(_status_bytes(each, "VmRSS:") for each in _family_cpu_s(pid))


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory one process ever held, in bytes.

    Not `ru_maxrss`: that one begins with what the parent held when it forked.
    """
    return _status_bytes(pid, "VmHWM:")


def _family_cpu_s(pid: int) -> dict[int, float]:
    """The processor seconds of the process and each of its descendants, by pid."""
    parents: dict[int, list[int]] = defaultdict(list)
    cpu_s: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; from the state on the fields are fixed.
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            own = int(folder.name)
            parents[int(words[1])].append(own)
            # Its own user and system time, and those of the children it has reaped.
            cpu_s[own] = sum(map(int, words[11:15])) / _TICKS_A_SECOND
    if pid not in cpu_s:
        raise BenchFailed(f"the process that was to be measured (pid {pid}) is gone")
    family, found = [pid], [pid]
    while family:
        family = [child for each in family for child in parents[each]]
        found += family
    return {each: cpu_s[each] for each in found}


def _status_bytes(pid: int | str, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
