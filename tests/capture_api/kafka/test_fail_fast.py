"""While Kafka is away requests fail fast, those too that already wait, and then all is as before.

The acknowledgement timeout here is longer than the clients wait: what is answered at all was not
kept until that timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from local_stack.kafka.topics import ensure_topic

ENDLESS_MS = "120000"
WAITING = 40


@pytest.fixture(scope="module")
def broker(new_broker: Callable[[], Any]) -> Any:
    """A broker of this module's own, which its tests stop and start."""
    return new_broker().start()


@pytest.fixture
def capture(broker: Any, new_capture: Callable[..., Any]) -> Iterator[Any]:
    """A running capture API on that broker."""
    made = new_capture(broker.bootstrap_servers, TIDEMARK_CAPTURE_ACK_TIMEOUT_MS=ENDLESS_MS).start()
    yield made
    assert "Traceback" not in made.log()


def send_while(capture: Any, outage: Callable[[], None], until: Any) -> list[httpx.Response]:
    """The answers to requests that are already waiting or come while the outage begins."""
    answers: list[httpx.Response] = []
    began = threading.Event()

    def send(number: int) -> httpx.Response:
        event = {"event": "e", "distinct_id": f"d{number}"}
        with httpx.Client(base_url=capture.url, timeout=30) as client:
            while True:
                response = client.post("/batch", json=capture.batch(event))
                answers.append(response)
                if response.status_code != 200:
                    return response
                began.set()

    with ThreadPoolExecutor(WAITING) as pool:
        sending = [pool.submit(send, number) for number in range(WAITING)]
        began.wait(30)
        outage()
        return [future.result(60) for future in sending]


@pytest.mark.parametrize("way", ["kill", "hang"])
def test_first_wave_is_given_up_and_the_rest_refused_at_once(
    broker: Any, capture: Any, until: Any, way: str
) -> None:
    """A broker that dies or hangs: 503 for all who wait, 503 at once for all who come, not ready;
    when it is back, 200 and ready without a restart."""
    body = capture.batch({"event": "e", "distinct_id": "d"})
    until(lambda: capture.client.post("/batch", json=body).status_code == 200, "it works")
    answers = send_while(capture, getattr(broker, way), until)
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["code"] for answer in answers} <= {"not_acknowledged", "kafka_away"}
    assert all(answer.headers["Retry-After"].isdigit() for answer in answers)
    assert "not_acknowledged" in {answer.json()["code"] for answer in answers}, "some did wait"
    until(lambda: capture.status("/_readiness") == 503, "the server is not ready")
    assert capture.status("/_liveness") == 200
    until(
        lambda: capture.client.post("/batch", json=body).json()["code"] == "kafka_away",
        "a request is refused without a try",
    )

    broker.start() if way == "kill" else broker.go_on()
    until(lambda: capture.status("/_readiness") == 200, "the server is ready again", 60)
    until(
        lambda: capture.client.post("/batch", json=body).status_code == 200,
        "events are accepted",
        60,
    )


def test_missing_topic_refuses_only_what_needs_it(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """Without the historical topic a migration is 503 and the topic is named, once in the log;
    everything else works, and the migration as soon as the topic is there."""
    capture = new_capture(kafka, make_topic=False)
    ensure_topic(kafka, capture.topic, 1)
    historical = f"{capture.topic}_historical"
    capture.start()
    fresh = capture.batch({"event": "e", "distinct_id": "d"})
    old = capture.batch({"event": "e", "distinct_id": "d"}, historical_migration=True)
    for _ in range(3):
        response = capture.client.post("/batch", json=old)
        assert (response.status_code, response.json()["code"]) == (503, "topic_missing")
        assert repr(historical) in response.json()["detail"]
        assert response.headers["Retry-After"] == "5"
        assert capture.client.post("/batch", json=fresh).status_code == 200
        assert capture.status("/_readiness") == 200
    assert capture.log().count(f"Kafka has no topic {historical!r}") == 1

    ensure_topic(kafka, historical, 1)
    until(lambda: capture.client.post("/batch", json=old).status_code == 200, "it is taken in")
