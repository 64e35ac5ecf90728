"""A week of arrival dates for the pictures: loaded, held, made by older code, lost in the lake.

    records as of noon of each day ─▶ micro-batches, started over GraphQL ─▶ what a picture needs

For a stack that is up and has a cadence of a day, so that nothing else starts a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from assets.pipeline.enrich import enrich
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.worker import Worker
from bench.fill import make_records
from capture_api.events.record import VERSION_HEADERS
from orchestration.ledger.connection import open_ledger
from orchestration.services import LOCATION
from orchestration.settings import Settings
from orchestration.webserver import ask

ENRICH, VERSION = "assets.pipeline.stage.enrich", "assets.pipeline.registering.TRANSFORM_VERSION"
"""What is other than today's for the date that older code made."""

_LAUNCH = """
mutation Launch($location: String!, $job: String!, $tags: [ExecutionTag!]!,
                $config: RunConfigData!, $assets: [AssetKeyInput!]) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job,
      assetSelection: $assets
    },
    runConfigData: $config,
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } }
       ... on PythonError { message } } }
"""
_STATUS = "query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_OVER = ("SUCCESS", "FAILURE", "CANCELED")
_LIMIT_S = 180.0
_A_DAY = 400
_REJECTED = 1_500


@dataclass(frozen=True)
class Week:
    """Which date is what."""

    older: date
    lost: date
    held: date


def fill_week(settings: Settings) -> Week:
    """Fill it. The newest date is today."""
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=back) for back in range(7, -1, -1)]
    older, first, lost, _empty, more, held, yesterday, _ = days
    _let_clients_say_when(settings)
    sender = _Sender(settings)
    sender.send(older)
    with (
        patch(ENRICH, _by_older_code),
        patch(VERSION, "0"),
    ):
        _micro_batch_here(settings)
    for day in (first, lost, more):
        sender.send(day)
    micro_batch(settings, first)
    sender.send(held)
    micro_batch(settings, held)
    sender.send(held, rejected=_REJECTED)
    micro_batch(settings, held)
    sender.send(held)
    micro_batch(settings, held)
    for day in (yesterday, today):
        sender.send(day)
        micro_batch(settings, day)
    for file in Path(settings.lake, "events", f"arrival_date={lost}").glob("*.parquet"):
        file.unlink()
    return Week(older, lost, held)


def micro_batch(settings: Settings, day: date) -> str:
    """A micro-batch for a date, to its end; gives the run."""
    return _launch(settings, "micro_batch", day)


def run_checks(settings: Settings) -> str:
    """The job of the checks, to its end: what no micro-batch has is evaluated then."""
    return _launch(settings, "checks", None)


def materialize(settings: Settings, asset: str, day: date, *, preview: bool | None = None) -> str:
    """A date of an asset, to the end of its run; of one that has previews, say which it is."""
    config = {"ops": {asset: {"config": {"preview": preview}}}} if preview is not None else None
    return _launch(settings, "__ASSET_JOB", day, config, [{"path": [asset]}])


def _launch(
    settings: Settings,
    job: str,
    day: date | None,
    config: dict[str, object] | None = None,
    assets: list[dict[str, list[str]]] | None = None,
) -> str:
    address = settings.dagster_address
    tags = [{"key": "dagster/partition", "value": day.isoformat()}] if day else []
    variables = {"location": LOCATION, "job": job, "tags": tags}
    answer = ask(address, _LAUNCH, **variables, config=config or {}, assets=assets)["launchRun"]
    if answer["__typename"] != "LaunchRunSuccess":
        raise SystemExit(f"Dagster starts no run: {answer}")
    run_id = str(answer["run"]["runId"])
    end = time.monotonic() + _LIMIT_S
    while ask(address, _STATUS, id=run_id)["runOrError"]["status"] not in _OVER:
        if time.monotonic() > end:
            raise SystemExit(f"run {run_id} does not end")
        time.sleep(0.5)
    return run_id


class _Sender:
    """Records as clients date them, other ones each time."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic
        self._producer = Producer({**settings.kafka_client, "acks": "all"})
        self._seed = 0

    def send(self, day: date, rejected: int = 0) -> None:
        """Records of a day, and so many that are none."""
        self._seed += 1
        noon = min(datetime.combine(day, clock(12), UTC), datetime.now(UTC))
        at = int(noon.timestamp() * 1000)
        self._produce(at, ((key, value) for key, value, _ in make_records(_A_DAY, 0, self._seed)))
        self._produce(at, ((b"key", b"no json") for _ in range(rejected)))

    def _produce(self, at: int, records: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            self._producer.produce(self._topic, value, key, headers=VERSION_HEADERS, timestamp=at)
        self._producer.flush(30)


def _let_clients_say_when(settings: Settings) -> None:
    entry = ConfigEntry(
        "message.timestamp.type", "CreateTime", incremental_operation=AlterConfigOpType.SET
    )
    topic = ConfigResource(ResourceType.TOPIC, settings.topic, incremental_configs=[entry])
    admin = AdminClient(settings.kafka_client)  # it has to live until the broker has answered
    for future in admin.incremental_alter_configs([topic]).values():
        future.result()


def _by_older_code(parsed: pa.Table) -> pa.Table:
    """What enrichment might have made of rows before it knew hosts."""
    rows = enrich(parsed)
    at = rows.schema.get_field_index("url_host")
    empty = pa.array([""] * len(rows), rows.schema.field(at).type)
    return rows.set_column(at, rows.schema.field(at), empty)


def _micro_batch_here(settings: Settings) -> None:
    ledger = open_ledger(settings.ledger)
    worker = Worker(settings, ledger, "by-older-code", say=lambda line: None)
    stage_batches(worker)
    load_batches(worker)
    load_dead_letters(worker)
    ledger.dispose()
