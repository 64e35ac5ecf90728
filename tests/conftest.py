"""Real parts for tests: Kafka, ClickHouse, and settings that live in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from local_stack.kafka.topics import wait_until_ready
from orchestration.settings import Settings
from tests.faults.matrix import Registry
from tests.killable import Killable
from tests.object_store import ObjectStore
from tests.stack import ClickHouseServer, Stack

BROKER_START_SECONDS = 120.0

# A broker of a test lives for seconds: the JVM's second compiler would cost more than it gives.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")

# Below the ports that outgoing connections get, and so that the controller's is below them too.
PORTS = range(10_000, 22_000)

SLOWEST_FIRST = ("faults", "sdks", "local_stack", "cli", "orchestration", "pipeline", "gateway")
"""Folders in the order in which processes that share the work begin them."""

# A machine that is busy is no fault of the code.
hypothesis.settings.register_profile(
    "tidemark",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tidemark")


def pytest_configure(config: pytest.Config) -> None:
    """The failure matrix, which also a process has to print that runs none of the tests itself."""
    config.addinivalue_line("markers", "matrix(*faults): rows of the failure matrix")
    config.pluginmanager.register(Registry(), "failure-matrix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: then no process is left with one when the others have nothing to do."""
    tests = Path(__file__).parent
    places = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(tests).parts[0], len(places)))


def unused_port() -> int:
    """A port of loopback that nobody listens on, and that no other process of tests is given."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def require_program(name: str, package: str) -> str:
    """The path of a program that is no Python package; the test is skipped when it is missing.

    With TIDEMARK_TESTS_REQUIRE_ALL=1, as in CI, it fails instead.
    """
    found = shutil.which(name)
    if found is None:
        text = f"{name} is not here: install Debian's package {package} (apt-get install {package})"
        if os.environ.get("TIDEMARK_TESTS_REQUIRE_ALL") == "1":
            pytest.fail(text)
        pytest.skip(text)
    return found


class Broker(Killable):
    """A local Kafka broker in a folder of its own; it keeps its data and port over a crash."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = unused_port()

    @property
    def bootstrap_servers(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> Broker:
        """Start it; with `wait`, return when it answers."""
        command = [sys.executable, "-m", "local_stack.kafka"]
        command += ["--home", str(self.home), "--port", str(self.port)]
        with (self.home / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        if wait:
            wait_until_ready(self.bootstrap_servers, BROKER_START_SECONDS)
        return self


@pytest.fixture(scope="session")
def new_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Broker]]:
    """Makes brokers, not started yet; all are gone at the end."""
    brokers: list[Broker] = []

    def make() -> Broker:
        brokers.append(Broker(tmp_path_factory.mktemp("kafka")))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.kill()


@pytest.fixture(scope="session")
def kafka(new_broker: Callable[[], Broker]) -> str:
    """The bootstrap servers of a local Kafka that all tests share."""
    return new_broker().start().bootstrap_servers


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Makes settings: the defaults in a temporary folder, and what the test says."""
    for name in os.environ:
        if name.startswith("TIDEMARK_"):
            monkeypatch.delenv(name)

    def make(**values: object) -> Settings:
        return Settings(**{"home": tmp_path / "home", **values})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def new_clickhouse(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], ClickHouseServer]]:
    """Makes ClickHouse servers, not started yet; all are gone at the end."""
    servers: list[ClickHouseServer] = []

    def make() -> ClickHouseServer:
        servers.append(ClickHouseServer(tmp_path_factory.mktemp("clickhouse")))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def clickhouse(new_clickhouse: Callable[[], ClickHouseServer]) -> str:
    """The address of a local ClickHouse that all tests share."""
    return new_clickhouse().start().address


@pytest.fixture(scope="session")
def new_object_store(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[], ObjectStore]]:
    """Makes S3 stores, not started yet; all are gone at the end."""
    stores: list[ObjectStore] = []

    def make() -> ObjectStore:
        stores.append(ObjectStore(tmp_path_factory.mktemp("s3"), unused_port))
        return stores[-1]

    yield make
    for store in stores:
        store.kill()


@pytest.fixture(scope="session")
def object_store(new_object_store: Callable[[], ObjectStore]) -> ObjectStore:
    """An S3 store with a bucket that all tests share."""
    return new_object_store().start()


@pytest.fixture
def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The same, and the environment says where it is and who may use its bucket."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return object_store


@pytest.fixture
def new_stack(
    tmp_path: Path, request: pytest.FixtureRequest, settings: Callable[..., Settings]
) -> Iterator[Callable[..., Stack]]:
    """Makes stacks, each with its own topic (not made yet), database, ledger and lake.

    They are on the Kafka and the ClickHouse that all tests share, unless the test says otherwise.
    """
    stacks: list[Stack] = []

    def make(**values: object) -> Stack:
        name = uuid4().hex[:12]
        if "kafka_bootstrap_servers" not in values:
            values["kafka_bootstrap_servers"] = request.getfixturevalue("kafka")
        if "clickhouse_url" not in values:
            values["clickhouse_url"] = request.getfixturevalue("clickhouse")
        own = {
            "home": tmp_path / name,
            "topic": f"events-{name}",
            "clickhouse_database": f"tests_{name}",
        }
        stacks.append(Stack(settings(**{**own, **values})))
        return stacks[-1]

    yield make
    for stack in stacks:
        stack.close()
