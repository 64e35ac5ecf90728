"""The operator's day in a real browser: Tidemark's definitions under Dagster's real processes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from uuid import uuid4

import dagster as dg
import pytest
from playwright.sync_api import Browser, Locator, Page

from assets.pipeline.batch import State
from assets.pipeline.waiting import release_batch
from assets.queryable import QUERYABLE
from orchestration.cadence_triggers import UNDER_WAY
from orchestration.ledger.batches import waiting_for_a_person
from orchestration.ledger.rebuilds import RebuildState, all_rebuilds
from orchestration.services import dagster_services
from orchestration.settings import SETTINGS_FILE, Settings
from orchestration.webserver import ask
from tests.conftest import unused_port
from tests.orchestration.conftest import until
from tests.orchestration.processes import dagster_running
from tests.records import Sent, value_of
from tests.sdks.conftest import browser  # noqa: F401  a fixture
from tests.stack import Stack

PATIENCE_MS = 120_000
RECORDS_A_DAY = 50
SENSOR = "micro_batch_sensor"


@dataclass(frozen=True)
class Deployment:
    """Two dates of the past, loaded, and Dagster over them with a cadence of five seconds."""

    stack: Stack
    instance: dg.DagsterInstance
    days: tuple[date, date]

    def rows(self, day: date) -> int:
        """How many rows the table has of a date."""
        query = f"SELECT count() FROM {self.stack.database}.events WHERE arrival_date = '{day}'"
        return int(str(self.stack.client.command(query)))

    def send(self, day: date, *numbers: int) -> None:
        """Put records into Kafka as of noon of a day."""
        noon = int(datetime.combine(day, time(12), UTC).timestamp() * 1000)
        self.stack.send(*(Sent(value_of(number), timestamp=noon) for number in numbers))


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, kafka: str, clickhouse: str
) -> Iterator[Deployment]:
    """Loaded by hand, then given to Dagster's three processes."""
    home, name = tmp_path_factory.mktemp("browser"), uuid4().hex[:12]
    settings = Settings(
        home=home,
        topic=f"events-{name}",
        clickhouse_database=f"tests_{name}",
        kafka_bootstrap_servers=kafka,
        clickhouse_url=clickhouse,
        dagster_port=unused_port(),
        cadence="5s",
        checks_cron="0 0 1 1 *",  # not but when a test asks for them
        hold_over_records=10,
    )
    lines = (f"{key}={value}\n" for key, value in settings.environment().items())
    (home / SETTINGS_FILE).write_text("".join(lines))
    today = datetime.now(UTC).date()
    stack = Stack(settings).make_topic(1, **{"message.timestamp.type": "CreateTime"})
    try:
        with dagster_running(settings, dagster_services(settings)) as instance:
            days = (today - timedelta(days=2), today - timedelta(days=1))
            deployment = Deployment(stack, instance, days)
            for number, day in enumerate(days):
                deployment.send(day, *range(number * RECORDS_A_DAY, (number + 1) * RECORDS_A_DAY))
            until(lambda: _loaded(stack) == 2, "the sensor's runs load both dates")
            yield deployment
    finally:
        stack.close()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def at(deployment: Deployment, browser: Browser) -> Iterator[Callable[[str], Page]]:  # noqa: F811
    """Opens a page of the UI by its path."""
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)

    def open_(path: str) -> Page:
        page.goto(f"{deployment.stack.settings.dagster_address}{path}")
        return page

    yield open_
    page.close()


def test_a_run_tells_what_it_carried(deployment: Deployment, at: Callable[[str], Page]) -> None:
    """The page of a run shows its batch and ranges as tags, and a line for each step on the way."""
    [batch, *_] = deployment.stack.batches()
    page = at(f"/runs/{batch.run_id}?logs=proved")
    page.get_by_text(f"batch {batch.batch_id}: {RECORDS_A_DAY} rows loaded and proved").wait_for()
    page.get_by_text("View tags and config").click()
    tags = page.get_by_role("dialog")
    tags.get_by_text(batch.batch_id).first.wait_for()
    tags.get_by_text(str(batch.ranges[0])).first.wait_for()


def test_what_the_checks_said_stands_until_they_run_again(
    deployment: Deployment, at: Callable[[str], Page]
) -> None:
    """Execute them on the page of `queryable`: micro-batches after that take none of it away."""
    _, day = deployment.days
    page = at(f"/assets/{QUERYABLE}?view=checks")
    page.locator("button", has_text=re.compile("^Execute all")).click()
    until(
        lambda: {said and said[1] for said in _said(deployment).values()} == {"SUCCEEDED"},
        "all of them are evaluated",
    )
    said = _said(deployment)
    assert said.keys() == _NOT_IN_MICRO_BATCHES
    before = deployment.rows(day)
    deployment.send(day, 30_000)
    until(lambda: deployment.rows(day) == before + 1, "a micro-batch loads another record")
    until(lambda: _at_rest(deployment), "its run is over")
    assert _said(deployment) == said
    page = at(f"/assets/{QUERYABLE}?view=checks")
    page.get_by_text("Succeeded").nth(len(said) - 1).wait_for()


def test_dates_are_rebuilt_by_materializing_them(
    deployment: Deployment, at: Callable[[str], Page]
) -> None:
    """Materialize selected partitions: what was lost of two dates is there again, each proved."""
    first, last = deployment.days
    before = [deployment.rows(day) for day in deployment.days]
    assert min(before) >= RECORDS_A_DAY
    for day in deployment.days:
        deployment.stack.client.command(
            f"ALTER TABLE {deployment.stack.database}.events DROP PARTITION '{day}'"
        )
        assert deployment.rows(day) == 0
    page = at("/assets/rebuilt_events")
    page.locator("button", has_text="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    chosen = dialog.get_by_role("textbox").first
    chosen.fill(f"[{first}...{last}]")
    chosen.press("Enter")
    dialog.get_by_text("2 partitions", exact=True).wait_for()
    dialog.locator("button", has_text="Launch backfill").click()
    until(
        lambda: (
            [found.state for found in all_rebuilds(deployment.stack.ledger, _topic(deployment))]
            == [RebuildState.SWAPPED] * 2
        ),
        "both dates are rebuilt",
    )
    assert [deployment.rows(day) for day in deployment.days] == before
    page = at("/assets/rebuilt_events")
    # Their runs go side by side: the page shows the one that ended last.
    page.get_by_text(re.compile(f"tidemark backfill back ({first}|{last})")).first.wait_for()


def test_the_cadence_is_switched_off_and_on(
    deployment: Deployment, at: Callable[[str], Page]
) -> None:
    """The trigger's switch stops it, says so, and starts it again; then what waits is loaded."""
    _, day = deployment.days
    before = deployment.rows(day)
    page = at("/automation")
    _switch(page).click()
    until(lambda: _running(deployment) == "STOPPED", "the trigger is stopped")
    deployment.send(day, 10_000)
    page = at("/automation")
    _switch(page).click()
    until(lambda: _running(deployment) == "RUNNING", "the trigger is started")
    until(lambda: deployment.rows(day) == before + 1, "what waited is loaded")


def test_a_date_is_red_while_a_batch_of_it_is_held(
    deployment: Deployment, at: Callable[[str], Page]
) -> None:
    """Its page leads to the run that says what to do; released and loaded it is green again."""
    other, day = deployment.days
    stack = deployment.stack
    noon = int(datetime.combine(day, time(12), UTC).timestamp() * 1000)
    stack.send(*(Sent(b"no json", timestamp=noon) for _ in range(20)))
    until(lambda: _status(deployment, day) == "FAILED", "the date is red")
    (held,) = waiting_for_a_person(stack.ledger, stack.settings.topic)
    before = deployment.rows(day)
    deployment.send(day, 20_000)
    until(lambda: deployment.rows(day) == before + 1, "a later batch of the date is loaded")
    until(lambda: _at_rest(deployment), "its run is over")
    assert _status(deployment, day) == "FAILED"
    assert _status(deployment, other) == "MATERIALIZED"

    page = at(f"/assets/events?view=partitions&partition={day}&status=FAILED")
    page.get_by_text(held.run_id[:8]).first.wait_for()
    page = at(f"/runs/{held.run_id}?logs=waits")
    page.get_by_text(f"tidemark release {held.batch_id}").first.wait_for()

    release_batch(stack.worker(), held.batch_id)
    until(lambda: _status(deployment, day) == "MATERIALIZED", "the date is green")
    page = at(f"/assets/events?view=partitions&partition={day}")
    page.get_by_text(held.batch_id).first.wait_for()


def _loaded(stack: Stack) -> int:
    return sum(batch.state is State.COMMITTED for batch in stack.batches())


_EVALUATED = """
{ assetNodes { assetChecksOrError { ... on AssetChecks { checks {
    name executionForLatestMaterialization { runId status } } } } } }
"""
_NOT_IN_MICRO_BATCHES = {"completeness", "duplicates", "freshness", "rejects_share", "schema"}


def _said(deployment: Deployment) -> dict[str, tuple[str, str] | None]:
    """The run and the status of those checks as the UI shows them; None: *Not Evaluated*."""
    nodes = ask(deployment.stack.settings.dagster_address, _EVALUATED)["assetNodes"]
    return {
        check["name"]: (shown["runId"], shown["status"]) if shown else None
        for node in nodes
        for check in node["assetChecksOrError"].get("checks", ())
        if check["name"] in _NOT_IN_MICRO_BATCHES
        for shown in [check["executionForLatestMaterialization"]]
    }


_STATUSES = """
{ assetNodeOrError(assetKey: {path: ["events"]}) { ... on AssetNode { assetPartitionStatuses {
    ... on TimePartitionStatuses { ranges { startKey endKey status } } } } } }
"""


def _status(deployment: Deployment, day: date) -> str:
    """What Dagster's UI is told of a date of `events`."""
    answer = ask(deployment.stack.settings.dagster_address, _STATUSES)
    for found in answer["assetNodeOrError"]["assetPartitionStatuses"]["ranges"]:
        if found["startKey"] <= day.isoformat() <= found["endKey"]:
            return str(found["status"])
    return "MISSING"


def _at_rest(deployment: Deployment) -> bool:
    return not deployment.instance.get_runs_count(dg.RunsFilter(statuses=UNDER_WAY))


def _topic(deployment: Deployment) -> str:
    return deployment.stack.settings.topic


def _switch(page: Page) -> Locator:
    """The switch in the row of the micro-batches' trigger."""
    row = page.get_by_text(SENSOR).first.locator(
        "xpath=ancestor::div[contains(@class, 'listItem__')]"
    )
    return row.locator("label:has(svg[width='36px'])")


def _running(deployment: Deployment) -> str:
    for state in deployment.instance.all_instigator_state():
        if state.instigator_name == SENSOR:
            return state.status.value
    return ""
