"""The HTTP surface: refusals, CORS, receipts and health."""

from __future__ import annotations

import gzip
import json
import socket
import uuid
from typing import Any

import httpx
import pytest

from capture_api.ingest import INGEST_PATHS
from capture_api.wire.http_protocol import MAX_HEAD_BYTES
from orchestration.ledger.projects import create_project, revoke_project

EVENT = {"event": "e", "distinct_id": "d"}


def test_unknown_token_is_refused_with_help(capture: Any) -> None:
    """A token that no project has is a 401 whose text names the command to run."""
    response = capture.client.post("/batch", json={"api_key": "phc_nobody", "batch": [EVENT]})
    assert response.status_code == 401
    assert "tidemark projects list" in response.json()["detail"]


def test_new_project_works_at_once(capture: Any) -> None:
    """The first event after creating a project is taken in, however fresh the project is."""
    for number in range(5):
        project = create_project(capture.ledger, f"new {number}")
        response = capture.client.post("/batch", json={"api_key": project.token, "batch": [EVENT]})
        assert response.status_code == 200, response.text


def test_revoked_token_is_refused_soon(capture: Any, until: Any) -> None:
    """After the next look at the projects, a revoked token is a 401."""
    project = create_project(capture.ledger, "short-lived")
    body = {"api_key": project.token, "batch": [EVENT]}
    assert capture.client.post("/batch", json=body).status_code == 200
    revoke_project(capture.ledger, project.project_id)
    until(
        lambda: capture.client.post("/batch", json=body).status_code == 401,
        "the revoked token is refused",
    )


@pytest.mark.parametrize("content", [b"", b"nonsense", b"{}", b'{"api_key":"phc_nobody"}'])
def test_every_answer_has_a_receipt_and_cors(capture: Any, content: bytes) -> None:
    """Refusals carry the receipt, CORS headers and JSON just as acceptances do."""
    for body in (content, json.dumps(capture.batch(EVENT)).encode()):
        response = capture.client.post(
            "/e/", content=body, headers={"Origin": "https://shop.example"}
        )
        assert uuid.UUID(response.headers["X-Request-Id"]).version == 7
        assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
        assert response.headers["Content-Type"] == "application/json"
        assert response.json().keys() in ({"status"}, {"code", "detail"})


@pytest.mark.parametrize("path", ["/e/", "/batch", "/flags/", "/array/x/config", "/nowhere"])
def test_preflight_is_answered_on_every_path(capture: Any, path: str) -> None:
    """A browser may send whatever headers it asked for, from any origin."""
    response = capture.client.options(
        path,
        headers={
            "Origin": "https://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-posthog-session",
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert response.headers["Access-Control-Allow-Headers"] == "content-type,x-posthog-session"
    assert "POST" in response.headers["Access-Control-Allow-Methods"]


def test_options_without_preflight_headers(capture: Any) -> None:
    """It is answered like an acceptance."""
    response = capture.client.options("/e")
    assert (response.status_code, response.json()) == (200, {"status": "Ok"})


def test_beacon_is_answered_without_a_body(capture: Any) -> None:
    """`beacon=1` turns 200 into 204, and the event is kept."""
    response = capture.client.post("/e/?beacon=1", json=capture.batch(EVENT))
    assert (response.status_code, response.content) == (204, b"")
    assert len(capture.records_of(response)) == 1


def test_get_takes_data_from_the_query(capture: Any) -> None:
    """A GET is a request like others, its payload in `data`; without it, 400."""
    data = json.dumps({**EVENT, "token": capture.token})
    response = capture.client.get("/e/", params={"data": data})
    assert response.status_code == 200, response.text
    assert len(capture.records_of(response)) == 1
    assert capture.client.get("/e/").status_code == 400


def test_other_methods_are_refused(capture: Any) -> None:
    """With the methods that are allowed."""
    response = capture.client.put("/e/", json=capture.batch(EVENT))
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]


def test_only_performance_events_is_accepted(capture: Any) -> None:
    """Nothing is kept, and the client is content."""
    event = {**EVENT, "event": "$performance_event"}
    response = capture.client.post("/batch", json=capture.batch(event))
    assert (response.status_code, response.json()) == (200, {"status": "Ok"})
    assert capture.records_of(response) == []


def test_body_over_the_limit_is_refused_by_its_length(capture: Any) -> None:
    """A declared length over the limit is refused, and the connection lives on."""
    response = capture.client.post("/batch", content=b" " * (21 << 20))
    assert response.status_code == 413
    assert capture.client.post("/batch", json=capture.batch(EVENT)).status_code == 200


def test_body_over_the_limit_is_refused_while_it_streams(capture: Any) -> None:
    """Without a declared length the body is cut off at the limit."""

    def chunks() -> Any:
        for _ in range(21):
            yield b" " * (1 << 20)

    response = httpx.post(f"{capture.url}/batch", content=chunks(), timeout=30)
    assert response.status_code == 413


def test_inflated_body_over_the_limit_is_refused(capture: Any) -> None:
    """A small body that inflates to a large one is refused too."""
    response = capture.client.post("/batch", content=gzip.compress(b" " * (101 << 20), 1))
    assert response.status_code == 413
    assert "inflates" in response.json()["detail"]


def test_client_that_hangs_up_leaves_no_trace(capture: Any) -> None:
    """Half a request and a closed connection are no error."""
    before = capture.log()
    with socket.create_connection(("127.0.0.1", capture.port)) as connection:
        connection.sendall(b"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert capture.client.post("/batch", json=capture.batch(EVENT)).status_code == 200
    assert "Traceback" not in capture.log().removeprefix(before)


def test_health_paths(capture: Any) -> None:
    """Liveness, readiness and the root answer 200 on a working server."""
    for path in ("/_liveness", "/_readiness", "/"):
        assert capture.client.get(path).status_code == 200


def test_description_lists_the_capture_paths(capture: Any) -> None:
    """OpenAPI shows where to send events."""
    paths = capture.client.get("/openapi.json").json()["paths"]
    assert {"/batch", "/e", "/i/v0/e", "/capture", "/track", "/engage"} <= paths.keys()


def test_no_capture_path_falls_through_to_its_description(capture: Any) -> None:
    """With and without a slash, every described path is answered by the capture code itself."""
    for path in INGEST_PATHS:
        for spelling in (path, f"{path}/"):
            response = capture.client.post(spelling, json=capture.batch(EVENT))
            assert response.status_code == 200, response.text
            assert response.headers["X-Request-Id"]


def exchange(capture: Any, *pieces: bytes) -> bytes:
    """What comes back for these bytes, until the server hangs up."""
    answer = b""
    with socket.create_connection(("127.0.0.1", capture.port), 30) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            while received := connection.recv(65536):
                answer += received
        except ConnectionError:
            pass  # it hung up while we were still sending
    return answer


@pytest.mark.parametrize(
    "start",
    [
        b"POST /batch HTTP/1.1\r\nHost: x\r\nX-Long: ",
        b"GET /e/?data=",
        b"POST /batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ",
    ],
)
def test_endless_head_is_cut_off(capture: Any, start: bytes, until: Any) -> None:
    """Headers, URL or trailers without an end: the server hangs up, and serves others."""
    answer = exchange(capture, start, *(b"x" * 65536 for _ in range(64)))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    until(lambda: "large_head" in capture.log(), "the log tells")
    assert capture.client.post("/batch", json=capture.batch(EVENT)).status_code == 200


def test_head_below_the_limit_is_read_however_it_is_cut(capture: Any) -> None:
    """Long headers in pieces, bodies far larger than the limit, and pipelined requests all pass."""
    body = json.dumps(capture.batch({**EVENT, "x": "y" * (4 * MAX_HEAD_BYTES)})).encode()
    head = b"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nX: %b" % (
        len(body),
        b"z" * (MAX_HEAD_BYTES // 2),
    )
    last = b"\r\nConnection: close\r\n\r\n"
    answer = exchange(capture, head, b"\r\n\r\n" + body + head, last + body)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_forwarding_headers_are_not_believed(capture: Any) -> None:
    """Whoever says to be somebody else is recorded under the address of the connection."""
    headers = {"X-Forwarded-For": "203.0.113.9"}
    response = capture.client.post("/batch", json=capture.batch(EVENT), headers=headers)
    [record] = capture.records_of(response)
    assert record.value["ip"] == "127.0.0.1"
