"""Ledgers for tests: SQLite, and a real PostgreSQL, which comes as a Python package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from bench.postgresql import local_postgresql
from orchestration.ledger.connection import open_ledger


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """Gives the URLs of new databases of a PostgreSQL of its own, on a socket of its own."""
    with local_postgresql(durable=False) as server:
        yield lambda: server.new_database(f"t{uuid4().hex[:12]}")


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
