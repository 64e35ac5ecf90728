"""/metrics: every metric is declared, shows what happened, and answers for all workers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from capture_api.app import create_app
from capture_api.events.records import RECORD_MAX_BYTES
from capture_api.exposition import Sample
from capture_api.metrics import METRICS
from orchestration.settings import Settings

EVENT = {"event": "e", "distinct_id": "d"}


def test_what_happened_shows(capture: Any) -> None:
    """Answers by path and status, events, refusals by reason, and how long Kafka took."""
    before = capture.samples()
    for _ in range(3):
        assert capture.client.post("/batch/", json=capture.batch(EVENT, EVENT)).status_code == 200
    assert capture.client.post("/e", content=b"{}").status_code == 401
    assert capture.client.get(f"/array/{capture.token}/config").status_code == 200
    large = {**EVENT, "properties": {"x": "x" * RECORD_MAX_BYTES}}
    assert capture.client.post("/i/v0/e", json=capture.batch(large)).status_code == 413
    now = capture.samples()

    def grown(name: str, *labels: str) -> float:
        return now[name, labels] - before.get((name, labels), 0)

    assert grown("http_requests_total", "/batch", "200") == 3
    assert grown("http_requests_total", "/e", "401") == 1
    assert grown("http_requests_total", "/array/{token}/config", "200") == 1
    assert grown("capture_events_received_total") == 7
    assert grown("capture_events_ingested_total") == 6
    assert grown("capture_events_dropped_total", "too_large") == 1
    assert grown("capture_requests_refused_total", "missing_token") == 1
    assert grown("capture_kafka_produce_ack_duration_seconds_count") == 3
    assert grown("http_request_duration_seconds_bucket", "+Inf", "/batch") == 3
    assert grown("capture_kafka_produce_bytes_total") > 6 * 100
    assert now["capture_ready", ()] == 1
    assert now["capture_in_flight_bytes", ()] == 0
    assert now["capture_resident_memory_bytes", ()] > 1 << 20


def test_paths_are_of_a_fixed_set(capture: Any) -> None:
    """Whatever is asked for makes no metric of its own."""
    for path in ("/nowhere", "/nowhere/else", "/batch/x"):
        capture.client.get(path)
    text = capture.client.get("/metrics").text
    assert 'path="other"' in text
    assert "nowhere" not in text
    assert "/batch/x" not in text


def test_bugs_are_counted(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that meets one is answered 500, and counted as that, whoever answers it."""

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    paths = {
        "/batch": "capture_api.ingest.parse_payload",
        "/i/v1/analytics/events": "capture_api.v1.endpoint.read_headers",
        "/flags": "capture_api.stubs.parse_query",
    }
    app = create_app(settings())

    async def send_all() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://capture") as client:
            for path, broken in paths.items():
                monkeypatch.setattr(broken, bug)
                assert (await client.post(path, json=EVENT)).status_code == 500

    asyncio.run(send_all())
    assert app.metrics.answers == {(path, 500): 1 for path in paths}
    assert app.metrics.refused == {"internal_error": len(paths)}


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
    capture = new_capture(kafka, TIDEMARK_CAPTURE_WORKERS="2", TIDEMARK_LOG_FORMAT="json")
    capture.environment["TIDEMARK_CAPTURE_SPOOL_DIR"] = str(capture.home / "spool")
    return capture.start()


def saved_samples(capture: Any) -> list[list[Sample]]:
    """What each worker has written down so far, in a folder of this port alone."""
    folder = capture.home / "capture" / f"workers-{capture.port}"
    return [
        msgspec.json.decode(file.read_bytes(), type=list[Sample]) for file in folder.glob("*.json")
    ]


def saved(capture: Any) -> list[float]:
    """How many events each worker has written down so far."""
    return [
        sample.value
        for samples in saved_samples(capture)
        for sample in samples
        if sample.name == "capture_events_ingested"
    ]


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
    until(lambda: two_workers.samples()[ingested] == sent, "all events are counted")
    assert two_workers.samples()["capture_ready", ()] == 2
    until(lambda: sum(saved(two_workers)) == sent, "all of it is written down")

    victim = workers_of(two_workers)[0]
    victim.kill()
    until(
        lambda: len({w.pid for w in workers_of(two_workers)} - {victim.pid}) == 2,
        "another worker is there",
    )
    until(lambda: two_workers.samples().get(("capture_ready", ())) == 2, "it is ready")
    assert two_workers.samples()[ingested] == sent


def test_samples_are_of_declared_metrics(two_workers: Any, until: Any) -> None:
    """All that a worker counts has its name, labels and sentence in one place, and is shown."""
    send_until_both_have_some(two_workers, until)
    samples = [sample for file in saved_samples(two_workers) for sample in file]
    declared = {metric.name: metric for metric in METRICS}
    assert {sample.name for sample in samples} <= declared.keys()
    for sample in samples:
        assert len(sample.labels) == len(declared[sample.name].labels), sample
    always = {metric.name for metric in METRICS if not metric.labels}
    assert always <= {sample.name for sample in samples}
    assert all(metric.help.endswith(".") for metric in METRICS)


def test_workers_end_well(two_workers: Any, until: Any) -> None:
    """SIGTERM to the supervisor ends everything, and its log is JSON without tracebacks."""
    workers = workers_of(two_workers)
    two_workers.process.send_signal(signal.SIGTERM)
    two_workers.process.wait(30)
    assert two_workers.process.returncode == 0
    assert not any(worker.is_running() for worker in workers)
    lines = [json.loads(line) for line in two_workers.log().splitlines()]
    assert lines
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert "Traceback" not in two_workers.log()
