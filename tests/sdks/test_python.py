"""posthog for Python, of today and of 2023, through faults and a restart of the broker.

What it believes delivered: an event whose batch has been answered 200. Everything else it tells:
`on_error` is called with each batch that it gives up, and `capture` returns None for an event that
it does not even queue. So: all that capture took, without what on_error was called with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posthog import Posthog

from tests.faulty_proxy import Fault
from tests.sdks.conftest import HERE, Way
from tests.sdks.evidence import hold
from tests.sdks.faults import all_seen, answered_but_unheard, faults, restart_broker

EVENTS = 4_000


class Sending:
    """A client of the SDK, and what it says about its events."""

    def __init__(self, way: Way, retries: int = 10, **options: Any) -> None:
        self.taken: set[int] = set()
        self.given_up: set[int] = set()
        self.client = Posthog(
            way.token,
            host=way.host,
            max_retries=retries,
            max_queue_size=EVENTS,
            thread=4,
            on_error=self._failed,
            **options,
        )

    def _failed(self, _: Exception, batch: list[dict[str, Any]]) -> None:
        self.given_up |= {message["properties"]["n"] for message in batch}

    def send(self, numbers: range) -> None:
        """Capture an event for each number."""
        for n in numbers:
            properties = {"n": n, "text": "é\u2028" * 20}
            if self.client.capture("tick", distinct_id=f"p{n % 50}", properties=properties):
                self.taken.add(n)

    def believed(self) -> set[int]:
        """Wait until the SDK is done; the events it believes delivered."""
        self.client.shutdown()
        return self.taken - self.given_up


@pytest.mark.parametrize(
    ("options", "path", "restart"),
    [
        ({}, "/batch/", False),
        ({"gzip": True}, "/batch/", True),
        ({"capture_mode": "v1"}, "/i/v1/analytics/events", False),
        (
            {"capture_mode": "v1", "capture_compression": "zstd"},
            "/i/v1/analytics/events",
            False,
        ),
    ],
    ids=["plain", "gzip", "v1", "v1-zstd"],
)
def test_events_survive_faults_and_a_restart_of_the_broker(
    way: Way, until: Callable[..., None], options: dict[str, Any], path: str, restart: bool
) -> None:
    """All that it believes delivered is in Kafka, and once in ClickHouse though sent again."""
    way.proxy.plan = faults(seed=1)
    sending = Sending(way, **options)
    sending.send(range(EVENTS // 2))
    if restart:
        restart_broker(way, until)
    sending.send(range(EVENTS // 2, EVENTS))
    believed = sending.believed()
    assert sending.given_up == set()
    assert len(believed) == EVENTS
    assert {exchange.path for exchange in way.proxy.exchanges} == {path}
    evidence = hold(way, believed)
    assert all_seen(way.proxy)
    assert answered_but_unheard(way.proxy) > 0
    assert evidence.duplicates > 0


def test_what_it_gives_up_is_told(way: Way) -> None:
    """With fewer retries than there are faults, on_error and ClickHouse agree on what is lost."""
    way.proxy.plan = lambda exchange: (
        Fault.UNAVAILABLE if b'"n": 7,' in exchange.body else Fault.NONE
    )
    sending = Sending(way, retries=0, flush_at=10)
    sending.send(range(100))
    believed = sending.believed()
    assert 7 in sending.given_up
    assert believed | sending.given_up == set(range(100))
    evidence = hold(way, believed)
    assert not evidence.uuids.keys() & sending.given_up


def test_the_sdk_of_2023(way: Way, sdks: Path) -> None:
    """It gives events no uuid, so what it sends again after a lost answer counts as new."""
    way.proxy.plan = faults(seed=2)
    sender = subprocess.run(
        [sys.executable, HERE / "python_2023.py", way.host, way.token, "2000"],
        env={**os.environ, "PYTHONPATH": str(sdks / "python-2023")},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(sender.stdout)
    assert told["version"] == "3.0.0"
    assert told["given_up"] == []
    hold(way, range(2000), own_uuids=False)
    assert all_seen(way.proxy)
