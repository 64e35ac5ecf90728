"""Ports of the loopback address: is one free, which one is, and who has it.

Data flow: a `Port` that a service needs → `require_port_free` → nothing, or one line that names
the port, its holder and the setting that moves it.
Invariant: nothing is kept open here; a port that is free now may be taken a moment later, so a
server still has to say what it could not bind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from local_stack.errors import StackError

HOST = "127.0.0.1"
PORTS_TRIED = 100


class PortTaken(StackError):
    """A port that a service needs is not free."""


@dataclass(frozen=True)
class Port:
    """A port a service listens on, and the setting that moves it."""

    number: int
    setting: str


def require_port_free(number: int, setting: str) -> None:
    """PortTaken unless a server could listen on this port of the loopback address now."""
    reason = _bind_error(number)
    if reason is None:
        return
    if reason != errno.EADDRINUSE:
        raise PortTaken(
            f"port {number} cannot be used ({os.strerror(reason)}): set {setting} to another"
        )
    holder = port_holder(number)
    by = f" (by {holder})" if holder else ""
    raise PortTaken(f"port {number} is taken{by}: set {setting} to a free one")


def free_port(preferred: int) -> int:
    """The first free port from `preferred` on, or any that is free."""
    for number in range(preferred, min(preferred + PORTS_TRIED, 65536)):
        if _bind_error(number) is None:
            return number
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def port_holder(number: int) -> str | None:
    """Who listens on a port, as "pid N name", as far as this user may know."""
    if sys.platform == "linux":
        return _port_holder_linux(number)
    if shutil.which("lsof") is None:
        return None
    argv = ["lsof", "-nP", f"-iTCP:{number}", "-sTCP:LISTEN", "-Fpc"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    found = {line[0]: line[1:] for line in reversed(lines) if line}
    return f"pid {found['p']} {found.get('c', '')}".rstrip() if "p" in found else None


def _bind_error(number: int) -> int | None:
    with socket.socket() as probe:
        # As servers do: a closed connection that lingers does not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
        except OSError as error:
            return error.errno
    return None


def _port_holder_linux(number: int) -> str | None:
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == number:
                    sockets.add(f"socket:[{words[9]}]")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                return f"pid {folder.name} {(folder / 'comm').read_text().strip()}"
    return None
