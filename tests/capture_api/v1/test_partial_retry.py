"""Protocol v1 when Kafka takes only some of a batch, or nothing at all."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from posthog import Posthog

from local_stack.kafka.topics import ensure_topic
from orchestration.ledger.rules import Action, add_rule

ACK_TIMEOUT_MS = 2_000
TINY_TOPIC_BYTES = "20000"


@pytest.fixture(scope="module")
def capture(kafka: str, new_capture: Callable[..., Any]) -> Any:
    """A capture API that sends some events to topics of their own, one tiny, one missing."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_ACK_TIMEOUT_MS=str(ACK_TIMEOUT_MS),
        TIDEMARK_CAPTURE_PROJECT_REFRESH_SECONDS="0.1",
    )
    for event in ("tiny", "missing", "later"):
        add_rule(capture.ledger, Action.TOPIC, event=event, topic=f"{capture.topic}_{event}")
    ensure_topic(kafka, f"{capture.topic}_tiny", 1, {"max.message.bytes": TINY_TOPIC_BYTES})
    return capture.start()


def test_only_what_kafka_does_not_have_is_to_be_sent_again(
    capture: Any, v1: Any, event: Any
) -> None:
    """An event whose topic is missing is a retry, with Retry-After; the others are in Kafka."""
    events = [event(), event(event="missing"), event(distinct_id="none"), event(event="")]
    response = v1(*events)
    assert response.status_code == 200
    assert list(response.json()["results"].values()) == [
        {"result": "ok"},
        {"result": "retry", "details": "not_persisted"},
        {"result": "warning", "details": "person_processing_disabled"},
        {"result": "drop", "details": "missing_event_name"},
    ]
    assert response.headers["Retry-After"] == "1"
    kept = {record.value["uuid"] for record in capture.records_of(response)}
    assert kept == {events[0]["uuid"], events[2]["uuid"]}


def test_an_event_that_kafka_refuses_for_its_size_is_dropped(
    capture: Any, v1: Any, event: Any, until: Callable[..., None]
) -> None:
    """Once it is certain that sending it again would not help; its neighbours are kept."""
    large = event(event="tiny", properties={"x": [str(uuid.uuid4()) for _ in range(2_000)]})
    small = event()

    def dropped() -> bool:
        response = v1(large, small)
        results = response.json()["results"]
        assert results[small["uuid"]] == {"result": "ok"}
        if results[large["uuid"]] == {"result": "retry", "details": "not_persisted"}:
            assert response.headers["Retry-After"] == "1"
            return False
        assert results[large["uuid"]] == {"result": "drop", "details": "event_too_big"}
        assert "Retry-After" not in response.headers
        return True

    until(dropped, "the large event is dropped")


def test_the_sdk_sends_the_rest_again(capture: Any, until: Callable[..., None]) -> None:
    """PostHog's SDK resends the one event until its topic is there, and the others once."""
    failures: list[Any] = []
    sdk = Posthog(
        capture.token,
        host=capture.url,
        capture_mode="v1",
        max_retries=6,
        on_error=lambda error, _batch: failures.append(error),
    )
    good = [sdk.capture("good", distinct_id="d") for _ in range(3)]
    late = sdk.capture("later", distinct_id="d")
    finish = threading.Thread(target=sdk.shutdown)
    finish.start()
    until(
        lambda: {record.value["uuid"] for record in capture.records()} >= set(good),
        "the good events are there",
    )
    ensure_topic(capture.kafka, f"{capture.topic}_later", 1)
    finish.join(60)
    assert failures == []
    assert [record.value["uuid"] for record in capture.records("_later")] == [late]
    arrived = [record.value["uuid"] for record in capture.records()]
    assert [arrived.count(uuid) for uuid in good] == [1, 1, 1]


def test_kafka_away(
    new_broker: Callable[[], Any],
    new_capture: Callable[..., Any],
    v1: Any,
    event: Any,
    until: Callable[..., None],
) -> None:
    """Until its absence is known each event is a retry; then 503 at once; then all is well."""
    broker = new_broker().start()
    other = new_capture(
        broker.bootstrap_servers, TIDEMARK_CAPTURE_ACK_TIMEOUT_MS=str(ACK_TIMEOUT_MS)
    ).start()
    headers = {"Authorization": f"Bearer {other.token}"}

    def send() -> Any:
        return v1(event(), headers=headers, to=other)

    assert send().status_code == 200
    broker.kill()
    seen = set()

    def refused_at_once() -> bool:
        with ThreadPoolExecutor(4) as pool:  # while one waits for Kafka, the others need not
            for response in pool.map(lambda _: send(), range(4)):
                if response.status_code == 200:
                    (result,) = response.json()["results"].values()
                    assert result == {"result": "retry", "details": "not_persisted"}
                else:
                    tag = response.json()["error"]
                    assert (response.status_code, tag) == (503, "service_unavailable")
                assert response.headers["Retry-After"] == "1"
                assert response.headers["PostHog-Request-Id"]
                seen.add(response.status_code)
        return 503 in seen

    until(refused_at_once, "the breaker is open")
    assert seen == {200, 503}
    broker.start()
    until(
        lambda: send().json().get("results", {"": {}}).popitem()[1] == {"result": "ok"},
        "events are taken in again",
        60,
    )


def test_kafka_away_with_a_spool(
    tmp_path: Path,
    new_broker: Callable[[], Any],
    new_capture: Callable[..., Any],
    v1: Any,
    event: Any,
    until: Callable[..., None],
) -> None:
    """Each event is `ok` once it is on disk, and in Kafka when that is back."""
    broker = new_broker().start()
    other = new_capture(
        broker.bootstrap_servers,
        TIDEMARK_CAPTURE_ACK_TIMEOUT_MS=str(ACK_TIMEOUT_MS),
        TIDEMARK_CAPTURE_SPOOL_DIR=str(tmp_path / "spool"),
    ).start()
    broker.kill()
    headers = {"Authorization": f"Bearer {other.token}"}
    sent = []
    for _ in range(3):
        events = [event(), event()]
        response = v1(*events, headers=headers, to=other)
        assert response.json()["results"] == {e["uuid"]: {"result": "ok"} for e in events}
        assert "Retry-After" not in response.headers
        sent += [e["uuid"] for e in events]
    broker.start()
    until(
        lambda: sorted(record.value["uuid"] for record in other.records()) == sorted(sent),
        "the events are in Kafka, each once",
        60,
    )
