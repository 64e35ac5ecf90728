"""The operating system's table of processes, as far as the supervisor needs it.

Data flow: /proc (Linux) or ps → `process`, `processes` → an `Entry` per pid: its group and when it
was born → `still_there`: which of those that were seen before are the same and not gone.
Invariant: a process is known by its pid and its birth together, so a recycled pid is another
process. Children of this very process are reaped here, or they would look alive.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Entry:
    """One process that holds anything: memory, files, ports."""

    group: int
    born: str  # its start time, as the operating system tells it
    dying: bool = False  # killed, while its threads still hold its ports


def process(pid: int) -> Entry | None:
    """The process with this pid, if there is one that holds anything (a zombie does not)."""
    return _table(pid).get(pid)


def processes() -> dict[int, Entry]:
    """All the processes that hold anything, by pid."""
    return _table(None)


def lives(pid: int, born: str) -> bool:
    """Whether the process that was born then has this pid still, and is not dying."""
    entry = process(pid)
    return entry is not None and entry.born == born and not entry.dying


def still_there(known: Mapping[int, Entry]) -> list[int]:
    """The pids of those among the known that still hold anything, dying ones too."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]
    table = processes()
    return [pid for pid, entry in known.items() if pid in table and table[pid].born == entry.born]


def has_in_environment(pid: int, assignment: str) -> bool:
    """Whether NAME=value is in a process's environment; only Linux tells."""
    try:
        return assignment.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def adopt(child: subprocess.Popen[bytes]) -> None:
    """Reap this child of ours when it has ended."""
    _children[child.pid] = child


def exit_code(pid: int) -> int | None:
    """How a child of ours ended, negative for a signal; None while that is not known."""
    child = _children.get(pid)
    return child.poll() if child is not None else None


def _table(only: int | None) -> dict[int, Entry]:
    if sys.platform != "linux":
        choice = ["-p", str(only)] if only is not None else ["-ax"]
        argv = ["ps", *choice, "-o", "pid=,pgid=,stat=,lstart="]
        text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        rows = [line.split(None, 3) for line in text.splitlines()]
        return {int(r[0]): Entry(int(r[1]), r[3]) for r in rows if not r[2].startswith("Z")}
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = {}
    for folder in Path("/proc").glob("[0-9]*" if only is None else str(only)):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; from the state on the fields are fixed.
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            state, group, threads, born = words[0], int(words[2]), int(words[17]), words[19]
            if state not in "ZX" or threads > 1:
                found[int(folder.name)] = Entry(group, f"{boot}:{born}", state in "ZX")
    return found
