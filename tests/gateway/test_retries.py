"""Replicas die and restart under load: nothing acknowledged is lost, nothing is stored twice."""

from __future__ import annotations

import itertools
import signal
import socket
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

ORIGIN = {"Origin": "https://shop.example"}
SENDERS = 6

_numbers = itertools.count()


class Sender(threading.Thread):
    """Sends batches through the gateway and keeps the books; half of its events have a uuid."""

    def __init__(self, gateway: Any, batch: Callable[..., Any]) -> None:
        super().__init__(daemon=True)
        self._gateway, self._batch = gateway, batch
        self._stop_now = threading.Event()
        self.accepted: list[int] = []
        self.given: dict[int, str] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        with self._gateway.new_client() as client:
            while not self._stop_now.is_set():
                self._send(client)

    def _send(self, client: httpx.Client) -> None:
        numbers = [next(_numbers) for _ in range(6)]
        events = [self._event(number) for number in numbers]
        try:
            response = client.post("/batch", json=self._batch(*events), headers=ORIGIN)
        except httpx.TransportError as error:
            self.failures.append(repr(error))
            return
        if response.status_code == 200:
            self.accepted += numbers
        else:
            self.failures.append(f"{response.status_code} {response.text}")
            assert response.status_code >= 500
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
            assert response.headers["Retry-After"].isdigit()
            self._stop_now.wait(0.02)

    def _event(self, number: int) -> dict[str, Any]:
        event = {"event": "e", "distinct_id": f"d{number}", "properties": {"n": number}}
        if number % 2:
            event["uuid"] = self.given[number] = str(uuid.uuid4())
        return event

    def finish(self) -> None:
        self._stop_now.set()
        self.join(60)
        assert not self.is_alive()


@pytest.fixture
def senders(gateway: Any, replicas: Any) -> Iterator[list[Sender]]:
    """Threads that send for as long as the test runs."""
    threads = [Sender(gateway, replicas[0].batch) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.finish()


def sent_more(senders: list[Sender], until: Any) -> None:
    """Wait until every sender has had a hundred more events accepted."""
    before = [len(sender.accepted) for sender in senders]
    until(
        lambda: all(len(s.accepted) >= n + 100 for s, n in zip(senders, before, strict=True)),
        "100 more events each are accepted",
        60,
    )


def end(replica: Any, number: int) -> None:
    """Send a signal to a replica and wait for its end."""
    replica.process.send_signal(number)
    replica.process.wait(30)


def balance(senders: list[Sender], replica: Any) -> int:
    """Check the books against Kafka; how many events are there more than once."""
    uuids: dict[int, list[str]] = defaultdict(list)
    for record in replica.records():
        uuids[record.value["properties"]["n"]].append(record.value["uuid"])
    for sender in senders:
        assert [n for n in sender.accepted if n not in uuids] == []
        assert all(uuids[n][0] == given for n, given in sender.given.items() if n in uuids)
    assert {n: found for n, found in uuids.items() if len(set(found)) > 1} == {}
    return sum(len(found) > 1 for found in uuids.values())


def test_killed_replicas_lose_and_double_nothing(
    senders: list[Sender], replicas: Any, until: Any
) -> None:
    """SIGKILL of each in turn, several times, while the other one serves."""
    sent_more(senders, until)
    for replica in (*replicas, *replicas):
        end(replica, signal.SIGKILL)
        sent_more(senders, until)
        replica.start()
        sent_more(senders, until)
    for sender in senders:
        sender.finish()
    balance(senders, replicas[0])


def test_restarts_are_not_noticed(senders: list[Sender], replicas: Any, until: Any) -> None:
    """SIGTERM of each in turn, several times: not one request fails."""
    sent_more(senders, until)
    for replica in (*replicas, *replicas):
        end(replica, signal.SIGTERM)
        sent_more(senders, until)
        replica.start()
        sent_more(senders, until)
    for sender in senders:
        sender.finish()
    assert [failure for sender in senders for failure in sender.failures] == []
    balance(senders, replicas[0])


class AnswerEater(threading.Thread):
    """Stands before a replica and hangs up where its answer should have come."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._replica = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.eaten: list[bytes] = []

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._replica), 30) as replica:
                replica.sendall(self._request(client))
                self.eaten.append(replica.recv(65536))

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @staticmethod
    def _request(client: socket.socket) -> bytes:
        received = b""
        while b"\r\n\r\n" not in received:
            received += client.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += client.recv(65536)
        return head + b"\r\n\r\n" + body


@pytest.mark.parametrize("padding", [0, 600_000])
def test_request_that_nginx_sends_twice_is_one_request(
    new_gateway: Callable[..., Any], replicas: Any, padding: int
) -> None:
    """A replica took the events, and its answer was lost: the other one is asked, and takes the
    same events with the same uuids and the same receipt. Bodies that wait in a file, too."""
    eater = AnswerEater(replicas[0].port)
    eater.start()
    second = f"127.0.0.1:{replicas[1].port}"
    last = {("site/replicas.conf", "127.0.0.1:8002 max_fails=10"): f"{second} backup max_fails=10"}
    gateway = new_gateway(eater.port, replicas[1].port, changes=last)
    nil = "00000000-0000-0000-0000-000000000000"
    events = [
        {"event": "e", "distinct_id": "d", "properties": {"n": n, "x": "y" * padding}, **more}
        for n, more in enumerate(({}, {"uuid": nil}, {"uuid": ""}, {"uuid": str(uuid.uuid4())}))
    ]
    response = gateway.client.post("/batch", json=replicas[0].batch(*events))
    eater.close()
    assert response.status_code == 200, response.text
    assert [answer[:12] for answer in eater.eaten] == [b"HTTP/1.1 200"]
    records = replicas[0].records_of(response)
    assert len(records) == 8
    uuids = {
        n: {r.value["uuid"] for r in records if r.value["properties"]["n"] == n} for n in range(4)
    }
    assert {n: len(found) for n, found in uuids.items()} == dict.fromkeys(range(4), 1)
    assert len(set.union(*uuids.values())) == 4
