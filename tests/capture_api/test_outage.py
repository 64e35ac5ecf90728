"""Kafka or the ledger goes away: nothing acknowledged is lost, nobody waits long, all recovers."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from local_stack.kafka.topics import ensure_topic, wait_until_ready

ACK_TIMEOUT_MS = 2_000


class Sender(threading.Thread):
    """Sends batches one after the other until told to stop, and keeps the books."""

    def __init__(self, capture: Any) -> None:
        super().__init__(daemon=True)
        self._capture = capture
        self._stop_now = threading.Event()
        self.accepted: set[str] = set()
        self.statuses: list[int] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._capture.url, timeout=30) as client:
            while not self._stop_now.is_set():
                uuids = [str(uuid.uuid4()) for _ in range(10)]
                events = [{"event": "e", "distinct_id": u, "uuid": u} for u in uuids]
                response = client.post("/batch", json=self._capture.batch(*events))
                self.statuses.append(response.status_code)
                if response.status_code == 200:
                    self.accepted.update(uuids)
                else:
                    assert response.headers["Retry-After"].isdigit()
                    self._stop_now.wait(0.02)

    def finish(self) -> None:
        self._stop_now.set()
        self.join(30)
        assert not self.is_alive()


def test_broker_crash_loses_nothing_acknowledged(
    new_broker: Callable[[], Any], new_capture: Callable[..., Any], until: Any
) -> None:
    """SIGKILL of the broker: 503 in time, not ready; back again: 200, and every 200 was true."""
    broker = new_broker().start()
    capture = new_capture(
        broker.bootstrap_servers, TIDEMARK_CAPTURE_ACK_TIMEOUT_MS=str(ACK_TIMEOUT_MS)
    ).start()
    senders = [Sender(capture) for _ in range(8)]
    for sender in senders:
        sender.start()
    until(lambda: all(len(s.accepted) >= 200 for s in senders), "200 events each are accepted")

    broker.kill()
    until(lambda: all(s.statuses[-1] == 503 for s in senders), "every sender is told 503")
    until(lambda: capture.status("/_readiness") == 503, "the server is not ready")
    assert capture.status("/_liveness") == 200
    assert capture.samples()["capture_kafka_away", ()] == 1

    def answered_at_once() -> bool:
        response = capture.client.post("/batch", json=capture.batch({"event": "e"}))
        code: str = response.json()["code"]
        return response.status_code == 503 and code == "kafka_away"

    until(answered_at_once, "the breaker is open")

    broker.start()
    until(lambda: capture.status("/_readiness") == 200, "the server is ready again", 60)
    before = [len(sender.accepted) for sender in senders]
    until(
        lambda: all(len(s.accepted) >= n + 200 for s, n in zip(senders, before, strict=True)),
        "200 more events each are accepted",
        60,
    )
    for sender in senders:
        sender.finish()

    stored = {record.value["uuid"] for record in capture.records()}
    accepted = set().union(*(sender.accepted for sender in senders))
    assert accepted - stored == set()
    assert {status for sender in senders for status in sender.statuses} == {200, 503}
    assert "FAIL [" not in capture.log()


def test_server_started_without_kafka_recovers(
    new_broker: Callable[[], Any], new_capture: Callable[..., Any], until: Any
) -> None:
    """It lives, says 503 at once and why, and works when Kafka comes."""
    broker = new_broker()
    capture = new_capture(broker.bootstrap_servers, make_topic=False).start(ready=False)
    until(
        lambda: "Kafka does not answer" in capture.client.get("/_readiness").text,
        "readiness says that Kafka is away",
    )
    event = {"event": "e", "distinct_id": "d"}
    assert capture.client.post("/batch", json=capture.batch(event)).status_code == 503

    broker.start(wait=False)
    wait_until_ready(broker.bootstrap_servers, 120)
    ensure_topic(broker.bootstrap_servers, capture.topic, 1)
    until(
        lambda: capture.client.post("/batch", json=capture.batch(event)).status_code == 200,
        "events are accepted",
        60,
    )
    assert capture.status("/_readiness") == 200


def test_missing_topic_is_named_until_it_exists(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """503, and a log line that names the topic; once it is created, 200 without a restart."""
    capture = new_capture(kafka, make_topic=False).start(ready=False)
    body = capture.batch({"event": "e", "distinct_id": "d"})
    until(
        lambda: capture.client.post("/batch", json=body).json()["code"] == "topic_missing",
        "the answer names the missing topic",
    )
    assert capture.status("/_readiness") == 503
    assert f"Kafka has no topic '{capture.topic}'" in capture.log()
    assert capture.samples()["capture_kafka_away", ()] == 0

    ensure_topic(kafka, capture.topic, 1)
    until(lambda: capture.status("/_readiness") == 200, "the server is ready")
    until(
        lambda: capture.client.post("/batch", json=body).status_code == 200, "events are accepted"
    )


def test_ledger_outage_leaves_known_tokens_good(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """Known tokens go on working; an unknown one is 503, since nobody can judge it."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_PROJECT_REFRESH_SECONDS="0.1").start()
    ledger = capture.home / "ledger.db"
    aside = capture.home / "ledger.aside"
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (capture.home / name).unlink(missing_ok=True)
    ledger.rename(aside)
    ledger.mkdir()  # a folder cannot be opened as a database
    unknown = {"api_key": "phc_nobody", "batch": [{"event": "e", "distinct_id": "d"}]}
    until(
        lambda: capture.client.post("/batch", json=unknown).status_code == 503,
        "an unknown token cannot be judged",
    )
    known = capture.batch({"event": "e", "distinct_id": "d"})
    assert capture.client.post("/batch", json=known).status_code == 200
    assert capture.status("/_readiness") == 200

    ledger.rmdir()
    aside.rename(ledger)
    until(
        lambda: capture.client.post("/batch", json=unknown).status_code == 401,
        "an unknown token is judged again",
    )


def test_requests_beyond_the_budget_are_told_to_wait(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """Bodies held at once stay within the setting; what comes on top is told to wait."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_MAX_INFLIGHT_BYTES=str(1 << 20),
        TIDEMARK_CAPTURE_MAX_BODY_BYTES=str(4 << 20),
    ).start()
    large = capture.batch({"event": "e", "distinct_id": "d", "x": "y" * (2 << 20)})
    response = capture.client.post("/batch", json=large)
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert response.headers["Retry-After"] == "1"
    small = capture.batch({"event": "e", "distinct_id": "d", "x": "y" * (1 << 19)})
    for _ in range(5):
        assert capture.client.post("/batch", json=small).status_code == 200


def test_shutdown_finishes_what_was_accepted(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """SIGTERM under load: requests in flight are answered, every 200 is in Kafka, exit code 0."""
    capture = new_capture(kafka).start()
    accepted: set[str] = set()
    ended = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=capture.url, timeout=30) as client:
            while True:
                u = str(uuid.uuid4())
                event = {"event": "e", "distinct_id": u, "uuid": u}
                try:
                    response = client.post("/batch", json=capture.batch(event))
                except httpx.TransportError:
                    ended.set()
                    return
                if response.status_code == 200:
                    accepted.add(u)

    threads = [threading.Thread(target=send, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(accepted) > 100, "100 events are accepted")
    assert capture.stop() == 0
    for thread in threads:
        thread.join(30)
    assert ended.is_set()
    assert accepted - {record.value["uuid"] for record in capture.records()} == set()
    assert "Traceback" not in capture.log()


def test_readiness_turns_before_the_server_leaves(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """After SIGTERM load balancers are told first, and events are still taken meanwhile; a second
    SIGTERM does not wait any longer."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_LEAVE_SECONDS="3600").start()
    event = {"event": "e", "distinct_id": "d"}
    capture.process.terminate()
    until(lambda: capture.status("/_readiness") == 503, "readiness says that it leaves")
    assert "about to end" in capture.client.get("/_readiness").text
    assert capture.status("/_liveness") == 200
    assert capture.client.post("/batch", json=capture.batch(event)).status_code == 200
    assert capture.stop() == 0


def test_server_leaves_after_the_delay(kafka: str, new_capture: Callable[..., Any]) -> None:
    """One SIGTERM is enough."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_LEAVE_SECONDS="0.2").start()
    assert capture.stop() == 0
