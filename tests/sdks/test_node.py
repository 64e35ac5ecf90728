"""posthog-node, of today, 2024 and 2022, through faults and a restart of the broker.

How each tells what it believes delivered stands at the top of `sender.mjs` and `sender_2022.mjs`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sdks.conftest import HERE, NODE, Way
from tests.sdks.evidence import hold
from tests.sdks.faults import all_seen, answered_but_unheard, faults, restart_broker

EVENTS = 4_000
# Patience for a broker that restarts on a busy machine.
QUICK = {"fetchRetryCount": 150, "fetchRetryDelay": 200, "flushAt": 50, "flushInterval": 200}


@dataclass
class Sender:
    """A Node.js process with the SDK."""

    process: subprocess.Popen[str]

    def go_on(self) -> None:
        """Let it send its second half."""
        self._input().write("go on\n")
        self._input().flush()

    def _input(self) -> Any:
        assert self.process.stdin is not None
        return self.process.stdin

    def wait_half(self) -> None:
        """Return when the first half is captured."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "half\n"

    def told(self) -> dict[str, Any]:
        """What it says at its end."""
        output, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, output
        told: dict[str, Any] = json.loads(output.splitlines()[-1])
        return told


@contextmanager
def sender(
    script: str, package: Path, way: Way, events: int, options: dict[str, Any], **environment: str
) -> Iterator[Sender]:
    """A sender that is running."""
    entry = json.loads((package / "package.json").read_text())
    main = package / entry.get("main", "index.js")
    argument = {"host": way.host, "token": way.token, "events": events, "options": options}
    with subprocess.Popen(
        [NODE, HERE / script, main, json.dumps(argument)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Sender(process)
        finally:
            process.kill()


@pytest.mark.parametrize(("mode", "path"), [("v0", "/batch/"), ("v1", "/i/v1/analytics/events")])
def test_events_survive_faults_and_a_restart_of_the_broker(
    way: Way, sdks: Path, until: Callable[..., None], mode: str, path: str
) -> None:
    """All that it believes delivered is in Kafka, and once in ClickHouse though sent again."""
    way.proxy.plan = faults(seed=3)
    package = sdks / "node_modules" / "posthog-node"
    with sender("sender.mjs", package, way, EVENTS, QUICK, POSTHOG_CAPTURE_MODE=mode) as node:
        node.wait_half()
        restart_broker(way, until)
        node.go_on()
        told = node.told()
    assert len(told["believed"]) == EVENTS, told["errors"]
    assert {exchange.path for exchange in way.proxy.exchanges} == {path}
    evidence = hold(way, told["believed"])
    assert all_seen(way.proxy)
    assert answered_but_unheard(way.proxy) > 0
    assert evidence.duplicates > 0


def test_the_sdk_of_2024(way: Way, sdks: Path) -> None:
    """The same of version 4."""
    way.proxy.plan = faults(seed=4)
    package = sdks / "node_modules" / "posthog-node-2024"
    with sender("sender.mjs", package, way, 2_000, QUICK) as node:
        node.wait_half()
        node.go_on()
        told = node.told()
    assert len(told["believed"]) == 2_000, told["errors"]
    hold(way, told["believed"])
    assert all_seen(way.proxy)


def test_the_sdk_of_2022(way: Way, sdks: Path) -> None:
    """Version 1 gives events no uuid, so what it sends again after a lost answer counts as new."""
    way.proxy.plan = faults(seed=5)
    package = sdks / "node_modules" / "posthog-node-2022"
    options = {"retryCount": 10, "flushAt": 50}
    with sender("sender_2022.mjs", package, way, 2_000, options) as node:
        told = node.told()
    assert told["errors"] == []
    assert len(told["believed"]) == 2_000
    hold(way, told["believed"], own_uuids=False)
    assert all_seen(way.proxy)
