"""Fixtures of the local stack's tests: a ClickHouse of their own, as a process."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class ClickHouseProcess:
    """A running server."""

    process: "subprocess.Popen[str]"
    url: str
    data: Path

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **options: Any) -> Any:
        """A clickhouse-connect client."""
        return clickhouse_connect.get_client(host="127.0.0.1", port=self.port, **options)

    def post(self, query: str | bytes, **params: Any) -> httpx.Response:
        """The answer to a query in the body, settings in the URL."""
        return httpx.post(self.url, params=params, content=query, timeout=60)

    def rows(self, query: str, **params: Any) -> list[list[str]]:
        """The rows of a query that must succeed."""
        answer = self.post(query, **params)
        assert answer.status_code == 200, answer.text
        return [line.split("\t") for line in answer.text.splitlines()]

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()


def _start(data: Path, *options: str) -> ClickHouseProcess:
    command = [sys.executable, "-m", "local_stack.clickhouse", "--data", str(data), "--port", "0"]
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " ready on http://" in line, line
    url = line.split(" ready on ")[1].split(",")[0]
    return ClickHouseProcess(process, url, data)


@pytest.fixture(scope="session")
def clickhouse_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    """One server for all tests that leave it as they found it."""
    server = _start(tmp_path_factory.mktemp("clickhouse"))
    yield server
    server.stop()


@pytest.fixture
def start_clickhouse(tmp_path: Path) -> Iterator[Callable[..., ClickHouseProcess]]:
    """Starts servers that the test may kill; those left are stopped."""
    started: list[ClickHouseProcess] = []

    def start(*options: str, data: Path | None = None) -> ClickHouseProcess:
        started.append(_start(data or tmp_path / "data", *options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def clickhouse_table(clickhouse_server: ClickHouseProcess) -> Iterator[str]:
    """An empty table `(a UInt64, s String)`."""
    name = "events_under_test"
    clickhouse_server.rows(f"DROP TABLE IF EXISTS {name} SYNC")
    clickhouse_server.rows(
        f"CREATE TABLE {name} (a UInt64, s String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    yield name
    clickhouse_server.rows(f"DROP TABLE IF EXISTS {name} SYNC")
