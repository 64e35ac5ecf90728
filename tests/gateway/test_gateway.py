"""nginx as deploy/gateway configures it: what it lets through, refuses, and sends again."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.conftest import require_program, unused_port

ORIGIN = {"Origin": "https://shop.example"}
EVENT = {"event": "e", "distinct_id": "d"}


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    """It is a refusal in the API's form, which a browser may read, and an SDK acts on rightly."""
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Retry-After" in response.headers["Access-Control-Expose-Headers"]
    assert re.fullmatch(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", response.headers["X-Request-Id"]
    )
    assert ("Retry-After" in response.headers) == (status == 429 or status >= 500)


def test_events_go_through(gateway: Any, replicas: Any) -> None:
    """With the client's address as nginx saw it, whatever the client says, and one receipt."""
    with gateway.new_client(local_address="127.0.0.9") as client:
        response = client.post(
            "/batch?secret=1",
            json=replicas[0].batch(EVENT),
            headers={"X-Forwarded-For": "203.0.113.9", "X-Request-Id": "0" * 32},
        )
    assert (response.status_code, response.json()) == (200, {"status": "Ok"})
    [record] = replicas[0].records_of(response)
    assert record.value["ip"] == "127.0.0.9"


def test_protocol_v1_goes_through(gateway: Any, replicas: Any) -> None:
    """With the client's address and the receipt, too."""
    moment = datetime.now(UTC).isoformat()
    headers = {
        "Authorization": f"Bearer {replicas[0].token}",
        "PostHog-Sdk-Info": "posthog-rs/1.2.3",
        "PostHog-Attempt": "1",
        "PostHog-Request-Id": str(uuid.uuid4()),
        "PostHog-Request-Timestamp": moment,
    }
    event = {**EVENT, "uuid": str(uuid.uuid4()), "timestamp": moment}
    with gateway.new_client(local_address="127.0.0.9") as client:
        response = client.post(
            "/i/v1/analytics/events",
            json={"created_at": moment, "batch": [event]},
            headers=headers,
        )
    assert response.status_code == 200, response.text
    [record] = replicas[0].records_of(response)
    assert (record.value["ip"], record.value["uuid"]) == ("127.0.0.9", event["uuid"])


def test_log_tells_no_secrets(gateway: Any, replicas: Any, until: Any) -> None:
    """A JSON object a line, with the receipt; without the address, the query and the client."""
    response = gateway.client.post(
        "/e/?secret=hidden", json=replicas[0].batch(EVENT), headers={"User-Agent": "hidden"}
    )
    receipt = response.headers["X-Request-Id"]
    until(lambda: any(line["receipt"] == receipt for line in gateway.log()), "it is logged")
    [line] = [line for line in gateway.log() if line["receipt"] == receipt]
    assert (line["status"], line["path"], line["network"]) == (200, "/e/", "127.0.0.0/24")
    text = (gateway.folder / "access.json").read_text()
    assert "hidden" not in text
    assert '127.0.0.1"' not in text


def over_http2(gateway: Any, body: bytes) -> str:
    """The answer to this body, sent to /batch as browsers and phones do it, and the version."""
    command = [require_program("curl", "curl"), "--silent", "--show-error", "--http2"]
    command += ["--cacert", str(gateway.folder / "gateway.crt"), "--write-out", " %{http_version}"]
    command += ["--header", "Content-Type: application/json", "--data-binary", "@-"]
    command += [f"{gateway.url}/batch"]
    return subprocess.run(command, input=body, capture_output=True, check=True).stdout.decode()


def test_http2_works(gateway: Any, replicas: Any) -> None:
    """Acceptances and refusals."""
    body = json.dumps(replicas[0].batch(EVENT)).encode()
    assert over_http2(gateway, body) == '{"status":"Ok"} 2'
    refusal, version = over_http2(gateway, b" " * (21 << 20)).rsplit(" ", 1)
    assert (json.loads(refusal)["code"], version) == ("too_large", "2")


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/metrics/", "//metrics", "/%6detrics", "/e/../metrics", "/e/..%2fmetrics",
     "/_readiness", "/_liveness", "/%5freadiness", "/metrics?x"],
)  # fmt: skip
def test_inside_is_not_reached_from_outside(gateway: Any, replicas: Any, path: str) -> None:
    """However the path is spelt."""
    assert replicas[0].client.get("/metrics").status_code == 200
    with ssl_socket(gateway) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"no_such_path" in answer


def ssl_socket(gateway: Any, address: str = "127.0.0.1") -> ssl.SSLSocket:
    """A raw connection to the gateway, from this address."""
    trust = ssl.create_default_context(cafile=str(gateway.folder / "gateway.crt"))
    plain = socket.create_connection(("127.0.0.1", gateway.port), 30, (address, 0))
    return trust.wrap_socket(plain, server_hostname="127.0.0.1")


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except (ConnectionError, ssl.SSLError):
        pass
    return received


def test_large_body_is_refused_by_nginx(gateway: Any, replicas: Any) -> None:
    """Beyond the API's limit nginx says 413 itself; the limit itself goes through to the API."""
    response = gateway.client.post("/batch", content=b" " * ((20 << 20) + 1), headers=ORIGIN)
    assert_refused(response, 413, "too_large")
    response = gateway.client.post("/batch", content=b" " * (20 << 20), headers=ORIGIN)
    assert response.status_code == 400
    large = replicas[0].batch(*({**EVENT, "x": "y" * 500_000} for _ in range(10)))
    assert gateway.client.post("/batch", json=large).status_code == 200


def test_large_head_is_refused(gateway: Any) -> None:
    """A URL or a header that the API would not read."""
    for url, headers in (("/e/?data=" + "x" * 40_000, {}), ("/e/", {"X": "y" * 40_000})):
        response = gateway.client.get(url, headers=ORIGIN | headers)
        assert (response.status_code, response.json()["code"]) == (431, "head_too_large")
    response = gateway.client.get("/e/?data=" + "x" * 20_000, headers=ORIGIN)
    assert response.json()["code"] != "head_too_large"


def test_refusals_of_the_api_go_through_unchanged(gateway: Any) -> None:
    """With one set of CORS headers, the API's."""
    response = gateway.client.post(
        "/batch", json={"api_key": "phc_no", "batch": [EVENT]}, headers=ORIGIN
    )
    assert response.status_code == 401
    assert "tidemark projects list" in response.json()["detail"]
    assert response.headers.get_list("Access-Control-Allow-Origin") == [ORIGIN["Origin"]]


def test_stalled_upload_is_cut_off(new_gateway: Callable[..., Any], replicas: Any) -> None:
    """A body, or a head, that stops coming: the connection is closed, not kept."""
    changes = {("nginx.conf", "client_body_timeout 15s"): "client_body_timeout 1s"}
    changes |= {("nginx.conf", "client_header_timeout 10s"): "client_header_timeout 1s"}
    gateway = new_gateway(replicas[0].port, changes=changes)
    for start in (b"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b"POST /b"):
        with ssl_socket(gateway) as connection:
            connection.sendall(start)
            assert read_all(connection) == b""


def test_no_replica_is_a_503_that_is_sent_again(new_gateway: Callable[..., Any]) -> None:
    """Also to browsers, whose preflights are answered meanwhile."""
    gateway = new_gateway(unused_port())
    for path in ("/batch", "/flags/"):
        assert_refused(gateway.client.post(path, json={}, headers=ORIGIN), 503, "replicas_away")
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    response = gateway.client.options("/batch", headers=ORIGIN | preflight)
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert response.headers["Access-Control-Allow-Headers"] == "x-a"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]


def test_too_many_requests_of_an_address_are_told_to_wait(
    new_gateway: Callable[..., Any], replicas: Any
) -> None:
    """503, which browsers send again, and not 429, which they drop.

    Preflights are counted by themselves, and those that are too many are answered by nginx.
    """
    changes = {("nginx.conf", "rate=200r/s"): "rate=1r/m"}
    changes |= {("nginx.conf", "burst=400 nodelay"): "burst=3 nodelay"}
    gateway = new_gateway(replicas[0].port, changes=changes)
    with gateway.new_client(local_address="127.0.0.7") as client:
        answers = [
            client.post("/batch", json=replicas[0].batch(EVENT), headers=ORIGIN) for _ in range(6)
        ]
        assert [answer.status_code for answer in answers] == [200] * 4 + [503] * 2
        assert_refused(answers[-1], 503, "too_many_requests")
        preflights = [client.options("/batch", headers=ORIGIN) for _ in range(6)]
        assert [answer.status_code for answer in preflights] == [200] * 4 + [204] * 2
        assert preflights[-1].headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    with gateway.new_client(local_address="127.0.0.8") as client:
        assert client.post("/batch", json=replicas[0].batch(EVENT)).status_code == 200


def has_answer(connection: ssl.SSLSocket, status: int) -> bool:
    """Whether an answer with this status has come; does not wait."""
    connection.settimeout(0)
    try:
        return connection.recv(65536).startswith(b"HTTP/1.1 %d " % status)
    except ssl.SSLWantReadError:
        return False


@pytest.mark.parametrize(
    ("method", "surplus", "served"), [("POST", 503, 401), ("OPTIONS", 204, 200)]
)
def test_stalled_bodies_of_an_address_are_limited(
    new_gateway: Callable[..., Any],
    replicas: Any,
    until: Any,
    method: str,
    surplus: int,
    served: int,
) -> None:
    """Whatever the method: those over the limit are answered at once and not held."""
    changes = {("nginx.conf", "limit_conn connections 200"): "limit_conn connections 5"}
    changes |= {("nginx.conf", "client_body_timeout 15s"): "client_body_timeout 60s"}
    gateway = new_gateway(replicas[0].port, changes=changes)
    start = f"{method} /batch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{".encode()
    with contextlib.ExitStack() as stack:
        waiting = {stack.enter_context(ssl_socket(gateway, "127.0.0.11")) for _ in range(20)}
        for connection in waiting:
            connection.sendall(start)

        def only_five_wait() -> bool:
            waiting.difference_update([each for each in waiting if has_answer(each, surplus)])
            return len(waiting) == 5

        until(only_five_wait, "15 are answered")
        with gateway.new_client(local_address="127.0.0.12") as other:
            assert other.request(method, "/batch", content=b"{}").status_code == served
        for connection in waiting:
            connection.settimeout(30)
            connection.sendall(b"}")
            assert connection.recv(65536).startswith(b"HTTP/1.1 %d " % served)
