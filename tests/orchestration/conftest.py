"""Fixtures of the orchestration's tests: a Dagster instance of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.instance import open_instance, write_instance
from orchestration.settings import Settings
from tests.ledger.conftest import postgresql  # noqa: F401  # a fixture

PATIENCE_S = 120.0


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in a folder that goes with the test."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield instance


@pytest.fixture(params=["sqlite", "postgresql"])
def kept_instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance on Tidemark's own storage, of either kind."""
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql")()
    settings = Settings(home=tmp_path / "kept", dagster_storage_url=url)
    write_instance(settings.home)
    with open_instance(settings) as instance:
        yield instance


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for the condition and give what it gave; fail with `what` when it does not come true."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.05)
    return found
