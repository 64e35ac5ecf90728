"""A web page with posthog-js in it, on an origin of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from tests.sdks.conftest import HERE, Way

OPTIONS = {
    "opt_out_useragent_filter": True,  # a browser without a window looks like a bot
    "capture_pageview": False,
    "autocapture": False,
    "rate_limiting": {"events_per_second": 10_000, "events_burst_limit": 100_000},
    "request_queue_config": {"flush_interval_ms": 250},
}


def html(way: Way, options: dict[str, Any], more: str) -> str:
    """The page; what the SDK says about failed requests is in `errors`."""
    told = json.dumps({"api_host": way.host, **OPTIONS, **options})
    return f"""<!doctype html>
        <script>{(HERE / "witness.js").read_text()}</script>
        <script src="/sdk.js"></script>
        <button>buy</button>
        <script>
            window.errors = []
            const on_request_error = (answer) => errors.push(answer.statusCode)
            const loaded = () => (window.is_loaded = true)
            posthog.init({json.dumps(way.token)}, {{ ...{told}, on_request_error, loaded }})
            {more}
        </script>"""


@contextmanager
def site(pages: dict[str, tuple[str, bytes]]) -> Iterator[str]:
    """A web server with these pages (media type and content); gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = pages.get(self.path, ("text/plain", b""))
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def page_with(
    browser: Browser, way: Way, script: Path, *, more: str = "", **options: Any
) -> Iterator[Page]:
    """A page that has loaded the SDK, in a fresh profile; `more` is JavaScript at its end."""
    content = {
        "/": ("text/html; charset=utf-8", html(way, options, more).encode()),
        "/sdk.js": ("text/javascript; charset=utf-8", script.read_bytes()),
    }
    with site(content) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("window.is_loaded")
        yield page


def delivered(page: Page) -> list[int]:
    """The numbers of the events that the page has heard a 200 for."""
    numbers: list[int] = page.evaluate("witness.numbers(witness.delivered)")
    return numbers
