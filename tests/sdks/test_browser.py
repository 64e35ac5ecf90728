"""posthog-js in a real browser, on another origin than the capture API, of today and of years ago.

What it believes delivered: `witness.js` notes it in the page, from the answers that the SDK gets.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.faulty_proxy import Canned, Exchange, Fault
from tests.sdks.conftest import Way
from tests.sdks.evidence import hold, in_kafka
from tests.sdks.faults import (
    all_seen,
    answered_but_unheard,
    faults,
    first_tries,
    restart_broker,
)
from tests.sdks.page import delivered, page_with

TODAY = "posthog-js/dist/array.full.no-external.js"
ARRAY_2021 = "posthog-js-2021/dist/array.js"
ARRAY_2023 = "posthog-js-2023/dist/array.full.js"
ARRAY_2025 = "posthog-js-2025/dist/array.full.js"
PATIENCE_SECONDS = 120.0

Until = Callable[..., None]


@pytest.fixture
def modules(sdks: Path) -> Path:
    """Where the SDKs of npm are."""
    return sdks / "node_modules"


def posts(way: Way) -> list[Exchange]:
    """The requests with events."""
    paths = {"/e/", "/i/v0/e/"}
    return [e for e in list(way.proxy.exchanges) if e.method == "POST" and e.path in paths]


def told_config(way: Way) -> bool:
    """Whether the SDK has heard where to send events and how."""
    return any(
        exchange.status == 200 and exchange.path.startswith(("/array/", "/decide/"))
        for exchange in list(way.proxy.exchanges)
    )


def test_events_survive_faults_and_a_restart_of_the_broker(
    way: Way, browser: Browser, modules: Path, until: Until
) -> None:
    """All 3,000 events are believed delivered in the end, are in Kafka, and once in ClickHouse."""
    way.proxy.plan = first_tries(faults(seed=6))
    with page_with(browser, way, modules / TODAY) as page:
        page.evaluate("witness.capture(3000, 50, 100), 0")
        restart_broker(way, until)
        until(lambda: len(delivered(page)) == 3000, "all are delivered", PATIENCE_SECONDS)
        believed = delivered(page)
    evidence = hold(way, believed)
    assert all_seen(way.proxy)
    assert answered_but_unheard(way.proxy) > 0
    assert evidence.duplicates > 0
    sent = posts(way)
    assert {exchange.headers["content-type"] for exchange in sent} == {"text/plain"}
    assert all(exchange.body.startswith(b"\x1f\x8b") for exchange in sent)
    assert not any("compression" in exchange.target for exchange in sent)


@pytest.mark.parametrize(
    ("script", "capture", "own_uuids", "troubles"),
    [
        # The first has no retries of its own, but Chromium sends again what was reset.
        (ARRAY_2021, "witness.capture(2000, 500, 1600)", False, [Fault.RESET_AFTER]),
        (
            ARRAY_2023,
            "witness.capture(2000, 500, 1600)",
            False,
            [Fault.RESET_AFTER, Fault.UNAVAILABLE],
        ),
        # This one limits itself to 100 events at once, whatever its options say.
        (
            ARRAY_2025,
            "witness.capture(100, 10, 300)",
            True,
            [Fault.RESET_AFTER, Fault.UNAVAILABLE],
        ),
    ],
    ids=["2021", "2023", "2025"],
)
def test_older_generations(
    way: Way,
    browser: Browser,
    modules: Path,
    until: Until,
    script: str,
    capture: str,
    own_uuids: bool,
    troubles: list[Fault],
) -> None:
    """Those without uuids count an event anew that they send again after a lost answer."""
    ahead = iter(troubles)
    way.proxy.plan = first_tries(
        lambda exchange: next(ahead, Fault.NONE) if "/e/" in exchange.path else Fault.NONE
    )
    events = int(capture.split("(")[1].split(",")[0])
    with page_with(browser, way, modules / script) as page:
        page.evaluate(f"{capture}, 0")
        until(lambda: len(delivered(page)) == events, "all are delivered", PATIENCE_SECONDS)
    hold(way, range(events), own_uuids=own_uuids)
    assert next(ahead, None) is None
    assert any("compression=gzip-js" in exchange.target for exchange in posts(way))


@pytest.mark.parametrize(
    ("script", "options", "parameter", "status"),
    [
        (TODAY, {}, "", 200),
        (TODAY, {"disable_compression": True}, "compression=base64", 200),
        (TODAY, {"disable_beacon": True}, "", 200),
        (ARRAY_2023, {}, "compression=gzip-js", 200),
        (ARRAY_2025, {}, "beacon=1", 204),
    ],
    ids=["today", "today-base64", "today-keepalive", "2023", "2025"],
)
def test_events_of_a_page_that_is_left(
    way: Way,
    browser: Browser,
    modules: Path,
    until: Until,
    script: str,
    options: dict[str, Any],
    parameter: str,
    status: int,
) -> None:
    """What waits in the queue goes out by beacon, or by fetch with keepalive, and is kept."""
    slow = {"request_queue_config": {"flush_interval_ms": 5000}}
    with page_with(browser, way, modules / script, **options, **slow) as page:
        until(lambda: told_config(way), "the SDK has its configuration")
        page.evaluate("witness.capture(20, 100)")
        page.goto("about:blank")
        until(lambda: len(in_kafka(way).uuids) == 20, "the events are in Kafka")
    [sent] = posts(way)
    assert parameter in sent.target
    assert sent.answered == status
    hold(way, range(20))


def test_json_is_sent_with_leave(way: Way, browser: Browser, modules: Path, until: Until) -> None:
    """Without compression it sends application/json, for which a browser asks leave first."""
    with page_with(browser, way, modules / TODAY, disable_compression=True) as page:
        page.evaluate("witness.capture(20)")
        until(lambda: len(delivered(page)) == 20, "all are delivered")
    assert {exchange.headers["content-type"] for exchange in posts(way)} == {"application/json"}
    assert any(exchange.method == "OPTIONS" for exchange in way.proxy.exchanges)
    hold(way, range(20))


def test_a_refusal_is_heard_and_not_sent_again(
    way: Way, browser: Browser, modules: Path, until: Until
) -> None:
    """The page can read a 400, and the SDK drops its events; what is answered 503 it retries."""
    with page_with(browser, way, modules / TODAY) as page:
        page.evaluate("posthog.set_config({before_send: (e) => ({...e, event: ''})})")
        page.evaluate("posthog.capture('bad', {n: 1})")
        page.wait_for_function("errors.length > 0")
        assert page.evaluate("errors") == [400]
        way.proxy.plan = lambda exchange: (
            Fault.UNAVAILABLE if "retry_count=2" not in exchange.target else Fault.NONE
        )
        page.evaluate("posthog.set_config({before_send: (e) => e})")
        page.evaluate("posthog.capture('good', {n: 2})")
        until(lambda: delivered(page) == [2], "the other event is through", PATIENCE_SECONDS)
    statuses = [exchange.status for exchange in posts(way)]
    assert statuses == [400, 503, 503, 200]
    assert in_kafka(way).uuids.keys() == {2}


def test_replay_is_refused_once_a_minute(
    way: Way, browser: Browser, modules: Path, until: Until
) -> None:
    """Recording forced on, the first refusal keeps it quiet, and events go on."""
    address = f"/array/{way.token}/config"
    config = way.capture.client.get(address).json()
    config["sessionRecording"] = {"endpoint": "/s/", "recorderVersion": "v2"}
    way.proxy.canned[address] = Canned(200, json.dumps(config).encode())
    with page_with(browser, way, modules / TODAY) as page:
        page.evaluate("posthog.startSessionRecording(true)")
        until(lambda: len(way.proxy.of("/s/")) > 0, "a recording is sent")
        page.wait_for_function("posthog.rateLimiter.isServerRateLimited('recordings')")
        assert not page.evaluate("posthog.rateLimiter.isServerRateLimited('events')")
        for _ in range(3):
            page.evaluate("document.querySelector('button').append('!')")
            page.evaluate("posthog.sessionRecording.stopRecording()")  # it sends what it has
            page.evaluate("posthog.startSessionRecording(true)")
        page.evaluate("witness.capture(100, 10, 100)")
        until(lambda: len(delivered(page)) == 100, "events are delivered")
        assert page.evaluate("errors") == [404]
    assert [exchange.status for exchange in way.proxy.of("/s/") if exchange.method == "POST"] == [
        404
    ]
    hold(way, range(100))
