"""PostHog's HTML snippet, which has no SDK in it: a queue, and a script loaded from `api_host`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.capture_api.conftest import Capture
from tests.conftest import Broker
from tests.faulty_proxy import FaultyProxy
from tests.sdks.page import OPTIONS, site

TODAY, OF_2025, OF_2023, OF_2021 = (
    "posthog-js",
    "posthog-js-2025",
    "posthog-js-2023",
    "posthog-js-2021",
)
QUEUE = """
    (function (queue) {
        if (queue.__SV) return
        window.posthog = queue
        queue._i = []
        queue.init = function (token, options, name) {
            const script = document.createElement('script')
            script.async = true
            if (%(cross_origin)s) script.crossOrigin = 'anonymous'
            script.src = options.api_host + %(path)s
            document.head.append(script)
            const target = name === undefined ? queue : (queue[name] = [])
            target.people = target.people || []
            for (const method of ['capture', 'identify', 'register', 'set_config'])
                target[method] = (...given) => target.push([method, ...given])
            queue._i.push([token, options, name === undefined ? 'posthog' : name])
        }
        queue.__SV = 1
    })(window.posthog || [])"""
"""What every generation of the snippet does, in a few lines."""


@pytest.fixture
def sending(
    broker: Broker, new_capture: Callable[..., Capture], sdks: Path, package: str
) -> Iterator[tuple[Capture, FaultyProxy]]:
    """A capture API that serves the scripts of one generation, and who writes down the requests."""
    folder = sdks / "node_modules" / package / "dist"
    capture = new_capture(broker.bootstrap_servers, TIDEMARK_CAPTURE_SCRIPTS_DIR=str(folder))
    with FaultyProxy(capture.start().port) as proxy:
        yield capture, proxy


@pytest.mark.parametrize(
    ("package", "path", "cross_origin"),
    [
        (TODAY, "/static/array.js", True),
        (TODAY, "/array/{token}/array.js", True),
        (OF_2025, "/static/array.js", True),
        (OF_2023, "/static/array.js", False),
        (OF_2021, "/static/array.js", False),
    ],
    ids=["today", "today-with-configuration", "2025", "2023", "2021"],
)
def test_a_page_with_the_snippet_alone(
    sending: tuple[Capture, FaultyProxy],
    browser: Browser,
    until: Callable[..., None],
    path: str,
    cross_origin: bool,
) -> None:
    """The SDK is loaded from `api_host`; events from before and after that are in Kafka, once."""
    capture, proxy = sending
    path = path.format(token=capture.token)
    queue = QUEUE % {"cross_origin": json.dumps(cross_origin), "path": json.dumps(path)}
    options = json.dumps({**OPTIONS, "api_host": proxy.url})
    html = f"""<!doctype html><head><script>{queue}
        posthog.init({json.dumps(capture.token)}, {options})
        posthog.capture('early', {{ n: 0 }})
        </script></head><button>buy</button>"""
    content = {"/": ("text/html; charset=utf-8", html.encode())}
    with site(content) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("window.posthog.__loaded")
        for number in (1, 2, 3):
            page.evaluate(f"posthog.capture('late', {{ n: {number} }}), 0")
        until(lambda: {0, 1, 2, 3} <= set(numbers(capture)), "the events are in Kafka")
    assert sorted(numbers(capture)) == [0, 1, 2, 3]
    scripts = [e for e in proxy.exchanges if e.path.endswith(".js")]
    assert path in {e.path for e in scripts}
    # Of a path with a version it hears a 404, and asks again without.
    missed = {e.path for e in scripts if e.status not in (200, 304)}
    assert all(re.fullmatch(r"/static/[\d.]+/[\w-]+\.js", name) for name in missed), missed
    got = {Path(e.path).name for e in scripts if e.status == 200}
    assert {Path(name).name for name in missed} <= got
    if path.startswith("/array/"):  # it has its configuration with it
        assert not [e for e in proxy.exchanges if e.path.endswith(("/config", "/config.js"))]


def numbers(capture: Capture) -> list[int]:
    """The number of each event that Kafka has now."""
    found = [record.value["properties"].get("n") for record in capture.records()]
    return [number for number in found if number is not None]
