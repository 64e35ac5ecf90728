"""Alarms: what is wrong is told once, with what to do, to a webhook and the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from assets.pipeline import topic as kafka_topic
from assets.pipeline.errors import LogTruncated
from assets.pipeline.loading import load_batches
from assets.pipeline.staging import stage_batches
from assets.pipeline.topic import Retention
from assets.pipeline.waiting import release_batch
from orchestration.alarms.conditions import of_standing
from orchestration.alarms.sensor import Watch
from orchestration.cadence import Cadence
from orchestration.cli import tidemark
from orchestration.definitions import definitions
from orchestration.ledger.alarms import note_alarms
from orchestration.ledger.backoffs import batch_name, table_name
from orchestration.ledger.batches import waiting_for_a_person
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.tables import backoffs, lanes
from orchestration.settings import Settings
from orchestration.standing import Completeness, LaneStanding, Standing, TopicStanding
from tests.records import Sent, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]

HOUR_US = 3_600 * 1_000_000


class Webhook:
    """A server that keeps what is posted, and answers what it is told to."""

    def __init__(self) -> None:
        self.status, self.answer = 200, b"no such channel"
        self.posts: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                outer.posts.append(json.loads(content))
                outer.headers.append(dict(self.headers))
                self.send_response(outer.status)
                self.send_header("Location", outer.url)
                self.end_headers()
                self.wfile.write(outer.answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self) -> list[tuple[str, str]]:
        """The alarms of all posts so far, and how each stood."""
        return [(a["name"], a["state"]) for post in self.posts for a in post["alarms"]]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A webhook on loopback."""
    hook = Webhook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def test_a_batch_that_waits_for_a_person_is_told_until_it_goes_on(
    new_stack: NewStack, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    """Once when it is held, with the command that helps, and once when it is loaded."""
    stack = new_stack(
        alarm_webhook_url=webhook.url,
        alarm_webhook_headers={"Authorization": "Bearer abc"},
        hold_over_records=0,
        hold_over_percent=50,
    ).make_topic()
    stack.send(*(Sent(b"no event", 0) for _ in range(3)), Sent(value_of(1), 0))
    stage_batches(stack.worker())
    (batch,) = waiting_for_a_person(stack.ledger, stack.settings.topic)
    watch = Watch(stack.settings, 0)
    assert watch.tell(instance).endswith(f"told held/{batch.batch_id}")
    assert "1 alarms stand" in watch.tell(instance)
    (post,) = webhook.posts
    assert f"tidemark release {batch.batch_id}" in post["text"]
    assert webhook.headers[0]["Authorization"] == "Bearer abc"

    release_batch(stack.worker(), batch.batch_id)
    load_batches(stack.worker())
    # Another process, later: what was told is on record.
    assert "nothing to be alarmed about" in Watch(stack.settings, 600).tell(instance)
    assert webhook.told() == [(f"held/{batch.batch_id}", "raised")]  # it may come back yet
    Watch(stack.settings, 0).tell(instance)
    assert webhook.told()[1:] == [(f"held/{batch.batch_id}", "over")]


def test_what_the_webhook_does_not_take_is_told_later(
    new_stack: NewStack,
    instance: dg.DagsterInstance,
    webhook: Webhook,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has it once, and why the webhook has not; nothing is told twice when it answers."""
    stack = new_stack(alarm_webhook_url=webhook.url, lake_min_free_bytes=1 << 60).make_topic()
    watch = Watch(stack.settings, 0)
    webhook.status = 404
    with caplog.at_level(logging.WARNING, "tidemark.alarms"):
        for _ in range(2):
            assert "not told: the webhook answered 404: no such channel" in watch.tell(instance)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "TIDEMARK_LAKE_MIN_FREE_BYTES" in said[0]
    webhook.status = 302
    assert "not told: the webhook answered 302" in watch.tell(instance)
    webhook.status, webhook.posts = 200, []
    watch.tell(instance)
    watch.tell(instance)
    assert webhook.told() == [("room", "raised")]


def test_kafka_away_is_an_alarm_and_no_end_of_another(
    new_stack: NewStack,
    instance: dg.DagsterInstance,
    webhook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What only Kafka can say stays as it was."""
    stack = new_stack(alarm_webhook_url=webhook.url, alarm_lag_records=1).make_topic()
    stack.send_numbers(range(3), 1)
    lagging = f"lag/{stack.settings.topic}"
    Watch(stack.settings, 0).tell(instance)
    assert webhook.told() == [(lagging, "raised")]
    away = stack.settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"})
    del away.__dict__["bootstrap_servers"]
    del away.__dict__["kafka_client"]
    with monkeypatch.context() as patched:
        patched.setattr(kafka_topic, "_METADATA_TIMEOUT_S", 1.0)
        Watch(away, 0).tell(instance)
    assert webhook.told()[1:] == [("kafka", "raised")]
    assert "capture API" in webhook.posts[-1]["text"]
    stack.run()
    with stack.ledger.begin() as connection:  # as if Kafka had lost what was read
        connection.execute(lanes.update().values(planned_end=1_000))
    Watch(stack.settings, 0).tell(instance)
    assert webhook.told()[2:] == [("kafka", "over"), (f"lanes/{stack.settings.topic}", "raised")]


def test_what_fails_for_long_is_an_alarm_of_its_own_deployment(
    new_stack: NewStack, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    """A table or a batch that is tried again by itself; not those of another with this ledger."""
    stack = new_stack(alarm_webhook_url=webhook.url, alarm_failing_seconds=60).make_topic()
    stack.send(value_of(1))
    (batch,) = stage_batches(stack.worker())
    long_ago, lately = now_us() - HOUR_US, now_us()
    table, own = table_name(stack.settings.topic, "events"), batch_name(batch.batch_id, "load")
    failing = {
        table: long_ago,
        own: long_ago,
        table_name(stack.settings.topic, "dead_letters"): lately,
        table_name("another", "events"): long_ago,
        batch_name("0123456789ab", "load"): long_ago,
    }
    with stack.ledger.begin() as connection:
        for name, since in failing.items():
            connection.execute(
                backoffs.insert().values(
                    name=name,
                    failures=5,
                    since=since,
                    failed_at=lately,
                    next_try_at=lately,
                    error_text="connection refused",
                )
            )
    Watch(stack.settings, 0).tell(instance)
    assert webhook.told() == [(f"failing/{name}", "raised") for name in sorted((own, table))]
    assert "fails since" in webhook.posts[0]["text"]


def _topic(**lane: Any) -> TopicStanding:
    seen_at = now_us()
    places = {"earliest": 0, "loaded_end": 0, "planned_end": 0, "end": 9, "log_end": 9}
    times = {name: seen_at + at for name, at in lane.items() if name.endswith("_at")}
    return TopicStanding(
        "events",
        seen_at,
        lanes=(LaneStanding(0, **{**places, **lane, **times}),),
        retention=Retention(168 * 3_600_000, None),
    )


def _kept(hours: int, age: int) -> TopicStanding:
    """Unread records so many hours old, of a topic that keeps them for so many."""
    topic = _topic(unread_from=0, unread_at=-age * HOUR_US)
    return replace(topic, retention=Retention(hours * 3_600_000, None))


@pytest.mark.parametrize(
    ("topic", "wrong"),
    [
        (_topic(not_loaded=9, oldest_at=-30 * HOUR_US), {"lag/events", "oldest/events"}),
        (_topic(not_loaded=4, oldest_at=-1), set()),
        (_topic(not_loaded=4, oldest_at=-30 * HOUR_US, is_bound=True), set()),
        (
            replace(
                _topic(),
                lanes=(
                    *_topic(oldest_at=-40 * HOUR_US, is_bound=True).lanes,
                    *_topic(oldest_at=-30 * HOUR_US).lanes,
                ),
            ),
            {"oldest/events"},
        ),
        (_topic(lost=1), {"lost/events"}),
        (_topic(unread_from=0, unread_at=-30 * HOUR_US), {"no_batch/events"}),
        (_topic(planned_end=9, unread_from=0, unread_at=-30 * HOUR_US), set()),
        (_kept(20, 13), {"no_batch/events"}),
        (_kept(20, 15), {"retention/events", "no_batch/events"}),
        (_kept(3, 1), {"no_batch/events"}),  # half of a retention that is shorter than the setting
        (_kept(3, 2), {"retention/events", "no_batch/events"}),
        (
            TopicStanding("events", now_us(), trouble=LogTruncated("records are gone")),
            {"lanes/events"},
        ),
    ],
)
def test_what_is_wrong_with_a_topic(
    settings: Callable[..., Settings], topic: TopicStanding, wrong: set[str]
) -> None:
    """Each by its own limit."""
    made = settings(alarm_lag_records=5, cadence="1h" if not topic.lanes else "1m")
    standing = Standing(topic.seen_at, (topic,), Completeness(None))
    assert set(dict(of_standing(made, open_ledger(made.ledger), standing))) == wrong


def test_failed_micro_batches_are_an_alarm_until_one_goes_well(
    new_stack: NewStack, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    """One alarm for all in a row."""
    stack = new_stack(alarm_webhook_url=webhook.url).make_topic()
    job = definitions(stack.settings).resolve_job_def("micro_batch")
    today = datetime.now(UTC).date().isoformat()
    watch = Watch(stack.settings, 0)
    for _ in range(2):
        run = instance.create_run_for_job(job, tags={"dagster/partition": today})
        instance.report_run_failed(run)
        watch.tell(instance)
    assert webhook.told() == [("runs", "raised")]
    assert run.run_id[:8] not in webhook.posts[0]["text"]
    run = instance.create_run_for_job(job, tags={"dagster/partition": today})
    for kind in ("PIPELINE_START", "PIPELINE_SUCCESS"):
        instance.handle_run_event(run.run_id, dg.DagsterEvent(kind, run.job_name, message="-"))
    assert "nothing to be alarmed about" in watch.tell(instance)


def test_the_command_lists_alarms_and_tries_the_webhook(
    settings: Callable[..., Settings], webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands, what is over; and whether the webhook can be reached, with its own words."""
    made = settings()
    monkeypatch.setenv("TIDEMARK_HOME", str(made.home))
    call = CliRunner().invoke
    assert call(tidemark, ["alarms"]).output == "no alarm stands\n"
    assert "is empty" in call(tidemark, ["alarms", "test"]).output
    ledger = open_ledger(made.ledger)
    note_alarms(ledger, {"room": "no room", "kafka": "away"}, 0)
    note_alarms(ledger, {"room": "no room"}, 0)
    listed = call(tidemark, ["alarms"]).output
    assert listed.index("over      kafka") < listed.index("ALARM     room")
    document = json.loads(call(tidemark, ["alarms", "--json"]).output)
    assert [(a["name"], a["over_at"] is None, a["told"]) for a in document] == [
        ("kafka", False, False),
        ("room", True, False),
    ]
    monkeypatch.setenv("TIDEMARK_ALARM_WEBHOOK_URL", webhook.url)
    assert "took it" in call(tidemark, ["alarms", "test"]).output
    assert webhook.told() == [("test", "raised"), ("test", "over")]
    webhook.status = 403
    assert "answered 403: no such channel" in call(tidemark, ["alarms", "test"]).output
    monkeypatch.setenv("TIDEMARK_ALARM_WEBHOOK_URL", f"{webhook.url}/hunter2")
    webhook.answer = b"Cannot POST /hook/hunter2: hunter2 is none"
    said = call(tidemark, ["alarms", "test"]).output
    assert "answered 403: Cannot POST ********: ******** is none" in said


def test_the_sensor_stands_in_the_definitions(settings: Callable[..., Settings]) -> None:
    """Running, at the interval of the setting."""
    sensor = definitions(settings(alarm_interval_seconds=30)).resolve_sensor_def("alarms")
    assert sensor.minimum_interval_seconds == 30
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("1m", 60), ("24h", 86_400), ("0 4 * * MON", 7 * 86_400)]
)
def test_the_gap_between_two_ticks(text: str, seconds: int) -> None:
    """Of an interval and of cron alike."""
    assert Cadence(text).gap_seconds(datetime(2026, 11, 24, 12, 3, tzinfo=UTC)) == seconds


def test_an_address_that_is_none_is_refused(settings: Callable[..., Settings]) -> None:
    """With what would do."""
    with pytest.raises(ValidationError, match="write https://HOST/PATH"):
        settings(alarm_webhook_url="chat.example.com")
