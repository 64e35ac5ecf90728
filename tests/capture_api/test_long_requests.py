"""Large requests of both protocols beside small ones: nobody waits for them, nothing is lost.

The server is a real one. What is asserted is the order in which requests are answered: a large one
takes thousands of times the work of a small one.
"""

from __future__ import annotations

import gzip
import json
import socket
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

EVENTS = 30_000
PADDING = "x" * 500
V0, V1 = "/batch/", "/i/v1/analytics/events"


def large_request(capture: Any, path: str, events: int = EVENTS) -> httpx.Request:
    """A request of many events, 20 MB before it is compressed."""
    now = datetime.now(UTC).isoformat()
    batch = [
        {
            "event": "large",
            "uuid": str(uuid.UUID(int=number << 64 | 0x8000_0000_0000_0000)),
            "distinct_id": f"user-{number % 50}",
            "timestamp": now,
            "properties": {"number": number, "padding": PADDING},
        }
        for number in range(events)
    ]
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    if path == V1:
        headers |= {
            "Authorization": f"Bearer {capture.token}",
            "User-Agent": "tests",
            "PostHog-Sdk-Info": "tests/1",
            "PostHog-Attempt": "1",
            "PostHog-Request-Id": str(uuid.uuid4()),
            "PostHog-Request-Timestamp": now,
        }
    body = {"api_key": capture.token, "created_at": now, "batch": batch}
    content = gzip.compress(json.dumps(body).encode(), 1)
    return httpx.Request("POST", f"{capture.url}{path}", content=content, headers=headers)


def waiting(capture: Any) -> float:
    """Large requests that wait for their turn, or have it."""
    number: float = capture.samples()["capture_long_requests", ()]
    return number


def turns_of(capture: Any) -> float:
    """Turns that large requests have had, or have."""
    number: float = capture.samples()["capture_long_turns_total", ()]
    return number


def send_beside(request: httpx.Request) -> tuple[ThreadPoolExecutor, Any]:
    """Send it on a thread: the future is of its answer."""
    pool = ThreadPoolExecutor(1)
    return pool, pool.submit(httpx.Client(timeout=60).send, request)


@pytest.mark.parametrize("path", [V0, V1])
def test_small_requests_are_answered_before_a_large_one(
    capture: Any, path: str, until: Callable[..., None]
) -> None:
    """Health, metrics and events, while it is at work; then it is answered, and whole."""
    request = large_request(capture, path)
    turns, before = turns_of(capture), 0
    pool, answer = send_beside(request)
    until(lambda: turns_of(capture) > turns, "it is at work")
    while not answer.done():
        event = {"event": "small", "distinct_id": "b"}
        assert capture.client.post("/batch/", json=capture.batch(event)).status_code == 200
        assert capture.status("/_liveness") == 200
        before += not answer.done()
    pool.shutdown()
    assert before >= 5
    assert answer.result().status_code == 200
    records = capture.records_of(answer.result())
    by_person: dict[str | None, list[int]] = {}
    for record in records:
        by_person.setdefault(record.key, []).append(record.value["properties"]["number"])
    assert sorted(n for numbers in by_person.values() for n in numbers) == list(range(EVENTS))
    assert all(numbers == sorted(numbers) for numbers in by_person.values())
    assert waiting(capture) == 0
    assert capture.samples()["capture_in_flight_bytes", ()] == 0
    if path == V1:
        results = answer.result().json()["results"]
        assert len(results) == EVENTS
        assert Counter(result["result"] for result in results.values()) == {"ok": EVENTS}


@pytest.mark.parametrize("path", [V0, V1])
def test_a_client_that_hangs_up(capture: Any, path: str, until: Callable[..., None]) -> None:
    """Its events are taken as those of a small request are; nothing is held afterwards."""
    request = large_request(capture, path)
    turns = turns_of(capture)
    ingested = capture.samples().get(("capture_events_ingested_total", ()), 0)
    with socket.create_connection(("127.0.0.1", capture.port)) as connection:
        lines = [f"POST {path} HTTP/1.1", *(f"{n}: {v}" for n, v in request.headers.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + request.content)
        until(lambda: turns_of(capture) > turns, "it is at work")
    until(
        lambda: capture.samples()["capture_events_ingested_total", ()] == ingested + EVENTS,
        "all of its events are in Kafka",
    )
    assert turns_of(capture) == turns + 1
    assert waiting(capture) == 0
    assert capture.samples()["capture_in_flight_bytes", ()] == 0


def test_an_end_waits_for_large_requests(
    kafka: str, new_capture: Callable[..., Any], until: Callable[..., None]
) -> None:
    """SIGTERM while one is at work and another waits: both are answered, then the process ends."""
    capture = new_capture(kafka).start()
    requests = [large_request(capture, path, EVENTS // 2) for path in (V0, V1)]
    sent = [send_beside(request) for request in requests]
    until(
        lambda: waiting(capture) == len(sent) or turns_of(capture) == len(sent),
        "one is at work, and the other waits",
    )
    assert capture.stop_process() == 0
    for pool, answer in sent:
        pool.shutdown()
        assert answer.result().status_code == 200
        assert len(capture.records_of(answer.result())) == EVENTS // 2


def test_many_large_requests_are_held_compressed(
    kafka: str, new_capture: Callable[..., Any]
) -> None:
    """Twelve at once take hardly more memory than one: what is made of them is there once."""
    capture = new_capture(kafka).start()
    unwanted = {"event": "$performance_event", "properties": {"padding": PADDING}}  # for Kafka
    text = json.dumps({"api_key": capture.token, "batch": [unwanted] * EVENTS}).encode()
    content = gzip.compress(text, 1)

    def send(client: httpx.Client) -> int:
        return client.post(f"{capture.url}/batch/", content=content).status_code

    with httpx.Client(timeout=60) as client:
        assert [send(client), send(client)] == [200, 200]
        one = peak(capture)
        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(send, [client] * 12)) <= {200, 503}
    # All twelve inflated and parsed would be twenty-four times the text, at the least.
    assert peak(capture) < one + 12 * len(content) + 6 * len(text)


def peak(capture: Any) -> int:
    """The most memory that the process has had, in bytes."""
    lines = Path(f"/proc/{capture.process.pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


def test_other_ways_to_be_long(capture: Any) -> None:
    """Packed or spelled so that undoing it takes long: answered as ever, each in a turn."""
    event = {"event": "e", "distinct_id": "d", "api_key": capture.token}
    text = json.dumps([event] * 1_000 + [{**event, "properties": {"a": "é" * 300_000}}]).encode()
    escaped = b"data=" + b"".join(b"%%%02x" % byte for byte in text)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    turns = turns_of(capture)
    for content, headers in ((text, {}), (escaped, form), (gzip.compress(text), {})):
        answer = capture.client.post("/e/", content=content, headers=headers)
        assert answer.status_code == 200
        assert len(capture.records_of(answer)) == 1_001
    bomb = gzip.compress(bytes(150 << 20))
    assert capture.client.post("/e/", content=bomb).status_code == 413
    assert turns_of(capture) == turns + 4
