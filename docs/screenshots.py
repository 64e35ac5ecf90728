"""Makes the pictures of the documents: `.venv/bin/python docs/screenshots.py`.

Starts a stack of its own, sends events with the SDK, waits for a run, and photographs the Dagster
UI with a real browser (Debian's chromium, or the one that CHROMIUM names).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from assets.queryable import QUERYABLE
from docs.week_of_dates import fill_week, materialize, run_checks
from local_stack.processes import Foreground
from local_stack.stack import START_LIMIT_S, start_stack
from orchestration.demo.run import demo_settings, send_and_prove
from orchestration.settings import Settings
from orchestration.webserver import ask

IMAGES = Path(__file__).with_name("images")
_CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_RUNS = """
{ runsOrError(limit: 20, filter: {statuses: [SUCCESS], pipelineName: "micro_batch"}) {
    ... on Runs { results { runId } } } }
"""
_SETTLE_MS = 2_500  # the UI draws its graphs with an animation


def main() -> None:
    """Make all pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_QUIET)
        with _stack("10s") as settings:
            send_and_prove(settings, 10_000, Console())
            run_checks(settings)
            address = settings.dagster_address
            photograph(browser, f"{address}/runs/{newest_run(address)}", "run.png")
            group = f"{address}/locations/tidemark/asset-groups/ingest/lineage"
            photograph(browser, group, "lineage.png", width=1_850)  # less, and it shows names only
            photograph(browser, f"{address}/assets/events?view=events", "materialization.png")
            photograph(browser, f"{address}/assets/{QUERYABLE}?view=checks", "checks.png")
        with _stack("24h") as settings:
            week = fill_week(settings)
            assets = f"{settings.dagster_address}/assets"
            dates = f"{assets}/events?view=partitions&partition={week.held}"
            photograph(browser, dates, "dates.png")
            photograph(browser, f"{settings.dagster_address}/automation", "automation.png")
            materialize(settings, "rebuilt_events", week.older)
            photograph(browser, f"{assets}/rebuilt_events?view=events", "rebuilt.png")
            for asset, day in (("reenriched_events", week.older), ("replayed_events", week.lost)):
                materialize(settings, asset, day, preview=True)
                materialize(settings, asset, day, preview=False)
                photograph(browser, f"{assets}/{asset}?view=events", f"{asset[:-7]}.png")
        browser.close()


@contextmanager
def _stack(cadence: str) -> Iterator[Settings]:
    """A stack of its own, in a home that goes with it."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["TIDEMARK_HOME"] = home
        settings = demo_settings(cadence)
        with Foreground(settings.home, "screenshots") as stack:
            start_stack(settings, stack.launch, lambda s: stack.wait_ready(s, START_LIMIT_S))
            yield settings


def newest_run(address: str) -> str:
    """The id of the newest run that went well."""
    runs = ask(address, _RUNS)["runsOrError"]["results"]
    return str(runs[0]["runId"])


def photograph(browser: Browser, address: str, name: str, width: int = 1_500) -> None:
    """One page as a PNG."""
    page = browser.new_page(viewport={"width": width, "height": 1000})
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(_SETTLE_MS)
    page.mouse.move(900, 800)
    page.mouse.wheel(0, -10_000 if name == "run.png" else 0)  # a run's log, from its first line
    page.wait_for_timeout(_SETTLE_MS)
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=IMAGES / name)
    page.close()


if __name__ == "__main__":
    main()
