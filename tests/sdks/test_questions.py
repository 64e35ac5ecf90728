"""Everything that the SDKs of today ask for, with all of their features switched on.

Each of their requests is known here: answered, or refused in a way that they leave at that.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser
from posthog import Posthog

from tests.faulty_proxy import Canned
from tests.sdks.conftest import HERE, NODE, Way
from tests.sdks.page import delivered, page_with

EVERYTHING: dict[str, Any] = {
    "hasFeatureFlags": True,
    "sessionRecording": {"endpoint": "/s/", "recorderVersion": "v2"},
    "surveys": True,
    "heatmaps": True,
    "productTours": True,
    "captureDeadClicks": True,
    "capturePerformance": {"web_vitals": True, "network_timing": True},
    "errorTracking": {"autocaptureExceptions": True},
    "logs": {"captureConsoleLogs": True},
}
"""What PostHog's remote configuration says where all of this is switched on."""


def refused(way: Way) -> Counter[str]:
    """The paths that were refused, and how often; fails where a path is not known at all."""
    unknown = [e for e in way.proxy.exchanges if b'"no_such_path"' in e.answer]
    assert unknown == [], f"the SDK asks for what nobody thought of: {unknown[0]}"
    assert not [e for e in way.proxy.exchanges if (e.answered or e.status or 500) >= 500]
    found: Counter[str] = Counter()
    for exchange in way.proxy.exchanges:
        if exchange.answered is not None and exchange.answered >= 400:
            assert b'"not_served"' in exchange.answer, exchange
            found[exchange.path] += 1
    return found


def test_node(way: Way, sdks: Path) -> None:
    """Flags, definitions, remote payloads, logs and metrics; nothing is asked again."""
    package = sdks / "node_modules" / "posthog-node" / "dist" / "entrypoints" / "index.node.js"
    argument = json.dumps({"host": way.host, "token": way.token})
    command = [NODE, HERE / "curious.mjs", package, argument]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    told = json.loads(output.splitlines()[-1])
    assert told == {"flags": {}, "payload": None, "flag": None, "errors": []}
    assert refused(way) <= Counter({"/i/v1/logs": 1, "/i/v1/metrics": 1})
    assert {"GET /flags/definitions", "POST /flags/", "POST /batch/"} <= way.proxy.asked()


def test_python(way: Way) -> None:
    """Flags, definitions, remote payloads, metrics and traces; nothing is asked again."""
    failures: list[Any] = []
    client = Posthog(
        way.token,
        host=way.host,
        secret_key="phx_of_somebody",
        enable_exception_autocapture=True,
        metrics={"service_name": "tests"},
        traces={"service_name": "tests"},
        on_error=lambda error, _: failures.append(error),
    )
    client.capture("asked", distinct_id="somebody")
    client.capture("$ai_generation", distinct_id="somebody")
    client.capture_exception(ValueError("on purpose"), distinct_id="somebody")
    client.metrics.count("asked", 1)
    with client.start_span("asking"):
        assert client.get_all_flags("somebody") == {}
        assert client.get_remote_config_payload("a-flag") is None
    client.load_feature_flags()
    client.shutdown()
    assert failures == []
    assert refused(way) == Counter({"/i/v1/metrics": 1, "/i/v1/traces": 1})
    assert {"GET /flags/definitions", "POST /flags/", "POST /batch/"} <= way.proxy.asked()


def test_browser(way: Way, browser: Browser, sdks: Path, until: Callable[..., None]) -> None:
    """Flags, surveys, experiments, scripts, logs, metrics: each refused once, and events go on."""
    address = f"/array/{way.token}/config"
    config = {**way.capture.client.get(address).json(), **EVERYTHING}
    way.proxy.canned[address] = Canned(200, json.dumps(config).encode())
    way.proxy.canned[f"{address}.js"] = Canned(404, b"")
    asking = """
        posthog.getSurveys(() => {})
        posthog.getEarlyAccessFeatures(() => {}, true)
        posthog.reloadFeatureFlags()
        posthog.metrics.count('asked', 1)
        posthog.captureLog({ body: 'asked' })
        console.error('on purpose')
    """
    script = sdks / "node_modules" / "posthog-js" / "dist" / "array.js"
    on = {"autocapture": True, "capture_pageview": True, "disable_web_experiments": False}
    with page_with(browser, way, script, more=asking, **on) as page:
        page.click("button")
        until(lambda: len(way.proxy.of("/static/surveys.js")) > 0, "scripts are asked for")
        page.evaluate("witness.capture(20)")
        until(lambda: len(delivered(page)) == 20, "events go through")
        page.goto("about:blank")
        until(lambda: len(way.proxy.of("/i/v1/metrics")) > 0, "metrics are sent")
        until(lambda: len(way.proxy.of("/i/v1/logs")) > 0, "logs are sent")
    again = {path: count for path, count in refused(way).items() if count > 1}
    assert again == {}
    asked = {"POST /flags/", "GET /api/surveys/", "GET /api/early_access_features/"}
    assert asked <= way.proxy.asked()
