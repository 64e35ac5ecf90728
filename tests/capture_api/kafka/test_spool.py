"""With a spool, events are accepted while Kafka is away, survive kill -9, and arrive in order."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from local_stack.kafka.topics import wait_until_ready

OUTAGE_SECONDS = 60.0


@pytest.fixture(scope="module")
def broker(new_broker: Callable[[], Any]) -> Any:
    """A broker of this module's own, which its tests stop and start."""
    return new_broker().start()


@pytest.fixture
def make(
    broker: Any, new_capture: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """Makes capture APIs with one spool folder for all, not started yet; no bug was logged."""
    folder = tmp_path_factory.mktemp("spool")
    made = []

    def make_one(**environment: str) -> Any:
        capture = new_capture(
            broker.bootstrap_servers, TIDEMARK_CAPTURE_SPOOL_DIR=str(folder), **environment
        )
        capture.spool = folder
        made.append(capture)
        return capture

    yield make_one
    for capture in made:
        assert "Traceback" not in capture.log()


class Ordered(threading.Thread):
    """Sends numbered events of a few people, one request after the other, until told to stop."""

    def __init__(self, capture: Any, name: str) -> None:
        super().__init__(daemon=True)
        self._capture, self._name = capture, name
        self._stop_now = threading.Event()
        self.sent: dict[str, list[str]] = defaultdict(list)  # accepted events by person
        self.accepted = 0
        self.refused: list[str] = []

    def run(self) -> None:
        number = 0
        with httpx.Client(base_url=self._capture.url, timeout=30) as client:
            while not self._stop_now.is_set():
                events = []
                for person in range(3):
                    number += 1
                    who = f"{self._name}-{person}"
                    events.append({"event": f"e{number:07}", "distinct_id": who})
                try:
                    response = client.post("/batch", json=self._capture.batch(*events))
                except httpx.TransportError:
                    return
                if response.status_code != 200:
                    self.refused.append(response.text)
                    continue
                for event in events:
                    self.sent[event["distinct_id"]].append(event["event"])
                self.accepted += 1

    def finish(self) -> None:
        self._stop_now.set()
        self.join(30)
        assert not self.is_alive()


def first_arrivals(capture: Any) -> dict[str, list[str]]:
    """The events of each person in the order in which Kafka first had them."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for record in capture.records():
        found[record.value["distinct_id"]].setdefault(record.value["event"])
    return {person: list(events) for person, events in found.items()}


def degraded(capture: Any) -> str:
    """What readiness says about the spool; empty when it is not in use."""
    response = capture.client.get("/_readiness")
    assert response.status_code == 200, response.text
    text: str = response.json().get("degraded", "")
    return text


def test_outage_is_not_seen_by_clients_and_order_is_kept(
    broker: Any, make: Callable[..., Any], until: Any
) -> None:
    """A broker hangs and comes back under load: every request is 200, nothing is lost, the events
    of a person keep their order, and at the end records go directly again."""
    capture = make(TIDEMARK_CAPTURE_ACK_TIMEOUT_MS="20000").start()
    senders = [Ordered(capture, f"s{number}") for number in range(6)]
    for sender in senders:
        sender.start()

    def each(more: int) -> None:
        before = [sender.accepted for sender in senders]
        until(
            lambda: all(s.accepted >= n + more for s, n in zip(senders, before, strict=True)),
            f"{more} more requests of each are accepted",
            OUTAGE_SECONDS,
        )

    each(20)
    assert degraded(capture) == ""
    broker.hang()
    until(lambda: "go through the spool" in degraded(capture), "the spool takes over")
    each(50)
    assert capture.status("/_readiness") == 200
    broker.go_on()
    until(lambda: degraded(capture) == "", "the spool is drained", OUTAGE_SECONDS)
    each(20)
    for sender in senders:
        sender.finish()

    assert [sender.refused for sender in senders] == [[]] * len(senders)
    arrived = first_arrivals(capture)
    for sender in senders:
        for person, events in sender.sent.items():
            assert arrived[person] == events
    until(lambda: not list(capture.spool.rglob("*.segment")), "the disk is free again")
    assert "the spool is drained" in capture.log()


@pytest.mark.parametrize("heir", ["itself", "another worker"])
def test_killed_server_leaves_its_spool_to_its_heir(
    broker: Any, make: Callable[..., Any], until: Any, heir: str
) -> None:
    """kill -9 with events in the spool, Kafka still away: whoever adopts the folder, the server
    started again or one that runs beside it, brings all that was acknowledged to Kafka."""
    capture = make().start()
    other = make().start() if heir == "another worker" else capture
    broker.hang()
    senders = [Ordered(capture, f"s{number}") for number in range(4)]
    for sender in senders:
        sender.start()
    until(lambda: "go through the spool" in degraded(capture), "the spool takes over")
    until(lambda: all(s.accepted > 20 for s in senders), "requests are accepted")
    kill_under_load(capture, senders)

    if heir == "itself":
        capture.start()
        until(lambda: "records of an earlier process" in capture.log(), "the spool is found")
        late = {"event": "late", "distinct_id": "late"}
        until(
            lambda: capture.client.post("/batch", json=capture.batch(late)).status_code == 200,
            "events are accepted behind it",
        )
    else:
        until(lambda: "adopted the spool" in other.log(), "the other server adopts it")
    broker.go_on()
    until(lambda: degraded(other) == "", "the spool is drained", OUTAGE_SECONDS)

    arrived = first_arrivals(capture)
    for sender in senders:
        for person, events in sender.sent.items():
            there = [event for event in arrived[person] if event in set(events)]
            assert there == events
    if heir == "itself":
        assert "late" in arrived["late"]


def kill_under_load(capture: Any, senders: list[Ordered]) -> None:
    """SIGKILL while requests are in flight; what was answered is in the senders' books."""
    capture.process.kill()
    capture.process.wait()
    for sender in senders:
        sender.join(30)  # the connection broke
        assert not sender.is_alive()


def test_full_spool_refuses_and_keeps_its_word(
    broker: Any, make: Callable[..., Any], until: Any
) -> None:
    """Beyond its size the answer is 503 and the server is not ready; all 200s arrive."""
    capture = make(TIDEMARK_CAPTURE_SPOOL_MAX_BYTES=str(1 << 20)).start()
    broker.hang()
    accepted = []
    response = None
    while response is None or response.status_code == 200:
        number = str(len(accepted))
        event = {"event": number, "distinct_id": "d", "properties": {"x": "y" * 100_000}}
        response = capture.client.post("/batch", json=capture.batch(event))
        if response.status_code == 200:
            accepted.append(number)
    assert len(accepted) >= 5
    assert response.status_code == 503
    until(
        lambda: (
            capture.client.post("/batch", json=capture.batch(event)).json()["code"] == "spool_full"
        ),
        "it is refused before it is read",
    )
    response = capture.client.get("/_readiness")
    assert (response.status_code, "the spool is full" in response.text) == (503, True)

    broker.go_on()
    until(lambda: capture.status("/_readiness") == 200, "the server is ready", OUTAGE_SECONDS)
    until(lambda: degraded(capture) == "", "the spool is drained", OUTAGE_SECONDS)
    arrived = first_arrivals(capture)["d"]
    assert [event for event in arrived if event in accepted] == accepted


def test_graceful_end_leaves_the_spool_for_the_next_start(
    broker: Any, make: Callable[..., Any], until: Any
) -> None:
    """SIGTERM in an outage ends with exit code 0, and the next process brings the events."""
    capture = make().start()
    broker.hang()
    for number in range(10):
        event = {"event": f"e{number}", "distinct_id": "d"}
        assert capture.client.post("/batch", json=capture.batch(event)).status_code == 200
    capture.process.terminate()
    assert capture.process.wait(30) == 0
    broker.go_on()
    wait_until_ready(broker.bootstrap_servers, 60)
    capture.start()
    until(lambda: degraded(capture) == "", "the spool is drained", OUTAGE_SECONDS)
    assert first_arrivals(capture)["d"] == [f"e{number}" for number in range(10)]
