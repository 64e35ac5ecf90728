"""/metrics: every metric is declared, shows what happened, and answers for all workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture_api.metrics import METRICS

EVENT = {"event": "e", "distinct_id": "d"}


def samples(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """What /metrics shows: values by name and label values."""
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_happened_shows(capture: Any) -> None:
    """Answers by path and status, events, refusals by reason, and how long Kafka took."""
    before = samples(capture.url)
    for _ in range(3):
        assert capture.client.post("/batch/", json=capture.batch(EVENT, EVENT)).status_code == 200
    assert capture.client.post("/e", content=b"{}").status_code == 401
    assert capture.client.get(f"/array/{capture.token}/config").status_code == 200
    now = samples(capture.url)

    def grown(name: str, *labels: str) -> float:
        return now[name, labels] - before.get((name, labels), 0)

    assert grown("http_requests_total", "/batch", "200") == 3
    assert grown("http_requests_total", "/e", "401") == 1
    assert grown("http_requests_total", "/array/{token}/config", "200") == 1
    assert grown("capture_events_received_total") == 6
    assert grown("capture_events_ingested_total") == 6
    assert grown("capture_requests_refused_total", "missing_token") == 1
    assert grown("capture_kafka_produce_ack_duration_seconds_count") == 3
    assert grown("http_request_duration_seconds_bucket", "+Inf", "/batch") == 3
    assert grown("capture_kafka_produce_bytes_total") > 6 * 100
    assert now["capture_ready", ()] == 1
    assert now["capture_in_flight_bytes", ()] == 0
    assert now["capture_resident_memory_bytes", ()] > 1 << 20


def test_every_metric_that_shows_is_declared(capture: Any) -> None:
    """Each family has its sentence in one place, and paths are of a fixed set."""
    for path in ("/nowhere", "/nowhere/else", "/batch/x"):
        capture.client.get(path)
    text = httpx.get(f"{capture.url}/metrics").text
    families = list(text_string_to_metric_families(text))
    assert {family.name for family in families} == {metric.name for metric in METRICS}
    assert all(family.documentation.endswith(".") for family in families)
    assert "nowhere" not in text


def workers_of(capture: Any) -> list[psutil.Process]:
    """The processes that serve."""
    return [
        child
        for child in psutil.Process(capture.process.pid).children()
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline())
    ]


@pytest.fixture(scope="module")
def two_workers(kafka: str, new_capture: Callable[..., Any]) -> Any:
    """A capture API with two workers."""
    return new_capture(kafka, TIDEMARK_CAPTURE_WORKERS="2", TIDEMARK_LOG_FORMAT="json").start()


def saved(capture: Any) -> list[float]:
    """How many events each worker has written down so far."""
    folder = capture.home / "capture" / "workers"
    files = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    return [{s[0]: s[2] for s in file}["capture_events_ingested"] for file in files]


def send_until_both_have_some(capture: Any, until: Any) -> int:
    """Send over new connections until both workers had events; how many were sent."""
    sent = 0

    def send() -> bool:
        nonlocal sent
        for _ in range(20):
            response = httpx.post(f"{capture.url}/batch", json=capture.batch(EVENT))
            assert response.status_code == 200
            sent += 1
        counts = saved(capture)
        return len(counts) >= 2 and all(counts)

    until(send, "both workers have written that they had events")
    return sent


def test_whoever_is_asked_answers_for_all_workers(two_workers: Any, until: Any) -> None:
    """The sum of both; a worker that is killed comes back, and what it counted stays."""
    sent = send_until_both_have_some(two_workers, until)
    ingested = ("capture_events_ingested_total", ())
    until(lambda: samples(two_workers.url)[ingested] == sent, "all events are counted")
    assert samples(two_workers.url)["capture_ready", ()] == 2
    until(lambda: sum(saved(two_workers)) == sent, "all of it is written down")

    victim = workers_of(two_workers)[0]
    victim.kill()
    until(
        lambda: len({w.pid for w in workers_of(two_workers)} - {victim.pid}) == 2,
        "another worker is there",
    )
    until(lambda: samples(two_workers.url).get(("capture_ready", ())) == 2, "it is ready")
    assert samples(two_workers.url)[ingested] == sent


def test_workers_end_well(two_workers: Any, until: Any) -> None:
    """SIGTERM to the supervisor ends everything, and its log is JSON without tracebacks."""
    workers = workers_of(two_workers)
    two_workers.process.send_signal(signal.SIGTERM)
    two_workers.process.wait(30)
    assert two_workers.process.returncode == 0
    assert not any(worker.is_running() for worker in workers)
    lines = [json.loads(line) for line in two_workers.log().splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert "Traceback" not in two_workers.log()
    assert str(os.getpid()) not in {line.get("pid") for line in lines}
