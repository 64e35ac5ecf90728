"""Protocol v1, the request as a whole: which fault is told, with what status, tag and headers."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import brotli
import httpx
import pytest
import zstandard

from capture_api.v1.answers import ERRORS, RETRIED
from capture_api.v1.endpoint import V1_PATHS
from orchestration.ledger.projects import create_project, revoke_project

ORIGIN = "https://shop.example"
A_UUID = "0198a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
REST = {"event": "e", "uuid": A_UUID, "distinct_id": "d", "timestamp": "2026-01-02T03:04:05Z"}
CREATED_AT = "2026-01-02T03:04:05Z"


def body(batch: Any = None, **more: Any) -> bytes:
    """A batch as JSON; without more, one good event."""
    events = [REST] if batch is None else batch
    whole = {"created_at": CREATED_AT, "batch": events, **more}
    return json.dumps({name: value for name, value in whole.items() if value != "-"}).encode()


def without(name: str) -> list[dict[str, Any]]:
    """One event that lacks a field."""
    return [{key: value for key, value in REST.items() if key != name}]


def test_a_batch_is_accepted_with_a_result_for_each_event(v1: Any, event: Any) -> None:
    """In the order of the batch, and without Retry-After."""
    events = [event() for _ in range(5)]
    response = v1(*events)
    assert response.status_code == 200, response.text
    assert list(response.json()) == ["results"]
    assert list(response.json()["results"].items()) == [
        (sent["uuid"], {"result": "ok"}) for sent in events
    ]
    assert response.headers["Content-Type"] == "application/json"
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize("path", [*V1_PATHS, *(f"{path}/" for path in V1_PATHS)])
def test_every_path_takes_events(capture: Any, v1: Any, event: Any, path: str) -> None:
    """With and without a slash, analytics and AI alike."""
    sent = event(event="$ai_generation")
    response = v1(sent, path=path)
    assert response.json()["results"] == {sent["uuid"]: {"result": "ok"}}
    assert [record.value["uuid"] for record in capture.records_of(response)] == [sent["uuid"]]


HEADER_FAULTS: list[tuple[dict[str, str | None], int, str]] = [
    ({"Authorization": None}, 401, "missing_authorization"),
    ({"Authorization": None, "User-Agent": None}, 401, "missing_authorization"),
    ({"User-Agent": None}, 400, "missing_required_headers"),
    ({"Content-Type": None}, 400, "missing_required_headers"),
    ({"PostHog-Sdk-Info": None}, 400, "missing_required_headers"),
    ({"PostHog-Attempt": None}, 400, "missing_required_headers"),
    ({"PostHog-Request-Id": None}, 400, "missing_required_headers"),
    ({"PostHog-Request-Timestamp": None}, 400, "missing_required_headers"),
    ({"User-Agent": None, "Authorization": "Basic x"}, 400, "missing_required_headers"),
    ({"Authorization": "Basic cGhj"}, 400, "invalid_header_value"),
    ({"Authorization": "phc_x"}, 400, "invalid_header_value"),
    ({"Authorization": "Bearer phx_personal"}, 401, "invalid_api_token"),
    ({"Authorization": "Bearer " + "x" * 65}, 401, "invalid_api_token"),
    ({"Authorization": "Bearer phc_nobody"}, 401, "invalid_api_token"),
    ({"Authorization": "Bearer phx_a", "Content-Type": "a/b"}, 401, "invalid_api_token"),
    ({"Content-Type": "text/plain"}, 415, "unsupported_content_type"),
    ({"Content-Type": "application/jsonl"}, 415, "unsupported_content_type"),
    ({"Content-Type": "a/b", "Content-Encoding": "lz4"}, 415, "unsupported_content_type"),
    ({"Content-Encoding": "lz4"}, 415, "unsupported_encoding"),
    ({"Content-Encoding": "gzip, br"}, 415, "unsupported_encoding"),
    ({"Content-Encoding": "lz4", "PostHog-Attempt": "0"}, 415, "unsupported_encoding"),
    ({"PostHog-Request-Id": "not-a-uuid"}, 400, "invalid_header_value"),
    ({"PostHog-Request-Id": ""}, 400, "invalid_header_value"),
    ({"PostHog-Attempt": "0"}, 400, "invalid_header_value"),
    ({"PostHog-Attempt": "-1"}, 400, "invalid_header_value"),
    ({"PostHog-Attempt": "one"}, 400, "invalid_header_value"),
    ({"PostHog-Attempt": "1.5"}, 400, "invalid_header_value"),
    ({"PostHog-Request-Timestamp": "yesterday"}, 400, "invalid_header_value"),
    ({"PostHog-Request-Timestamp": "2026-01-02T03:04:05"}, 400, "invalid_header_value"),
    ({"PostHog-Request-Timestamp": "1767323045"}, 400, "invalid_header_value"),
]


@pytest.mark.parametrize(("headers", "status", "tag"), HEADER_FAULTS)
def test_faults_of_headers(
    v1: Any, event: Any, headers: dict[str, str | None], status: int, tag: str
) -> None:
    """The first fault in the protocol's order is told; nothing of the batch is judged."""
    check_error(v1(event(), headers=headers), status, tag)


def test_every_missing_header_is_named(v1: Any) -> None:
    """At once, so that a client's author need not find them one by one."""
    response = v1(headers={"User-Agent": None, "PostHog-Attempt": None})
    text = response.json()["error_description"]
    assert "User-Agent" in text
    assert "PostHog-Attempt" in text
    assert "PostHog-Request-Id" not in text


GOOD_HEADERS: list[dict[str, str]] = [
    {"Content-Type": "application/json; charset=utf-8"},
    {"Content-Type": "Application/JSON;charset=UTF-8"},
    {"Content-Encoding": ""},
    {"Content-Encoding": "identity"},
    {"PostHog-Attempt": "7"},
    {"PostHog-Request-Id": A_UUID.upper()},
    {"PostHog-Request-Id": A_UUID.replace("-", "")},
    {"PostHog-Request-Timestamp": "2026-01-02T03:04:05.123456789+05:30"},
    {"PostHog-Sdk-Info": "nonsense"},
    {"PostHog-Sdk-Info": ""},
    {"PostHog-Sdk-Info": "posthog/" + "9" * 300},
    {"User-Agent": ""},
]


@pytest.mark.parametrize("headers", GOOD_HEADERS)
def test_headers_that_are_good_enough(v1: Any, event: Any, headers: dict[str, str]) -> None:
    """Parameters, other spellings, and SDKs that cannot be told by their name."""
    response = v1(event(), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("form", ["bearer {}", "BEARER {}", "beaRER   {}", "Bearer {}"])
def test_the_scheme_has_no_case_and_the_token_no_blanks(
    capture: Any, v1: Any, event: Any, form: str
) -> None:
    """As RFC 6750 has it."""
    headers = {"Authorization": form.format(capture.token)}
    assert v1(event(), headers=headers).status_code == 200


BODY_FAULTS: list[tuple[bytes, int, str]] = [
    (b"", 400, "empty_body"),
    (b" \n", 400, "empty_body"),
    (b"null", 400, "request_parsing_error"),
    (b"1234", 400, "request_parsing_error"),
    (b'"null"', 400, "request_parsing_error"),
    (b"nonsense", 400, "request_parsing_error"),
    (b"[]", 400, "request_parsing_error"),
    (b"{}", 400, "request_parsing_error"),
    (body()[:-1], 400, "request_parsing_error"),
    (
        body([dict(REST, properties={"x": "y"})]).replace(b'"y"', b'"\xff"'),
        400,
        "request_parsing_error",
    ),
    (body(created_at="-"), 400, "request_parsing_error"),
    (body(created_at=None), 400, "request_parsing_error"),
    (body(batch={}), 400, "request_parsing_error"),
    (body(without("event")), 400, "request_parsing_error"),
    (body(without("uuid")), 400, "request_parsing_error"),
    (body(without("distinct_id")), 400, "request_parsing_error"),
    (body(without("timestamp")), 400, "request_parsing_error"),
    (body([dict(REST, event=1)]), 400, "request_parsing_error"),
    (body([dict(REST, distinct_id=7)]), 400, "request_parsing_error"),
    (body([dict(REST, uuid=None)]), 400, "request_parsing_error"),
    (body([dict(REST, timestamp=1767323045)]), 400, "request_parsing_error"),
    (body([dict(REST, session_id=3)]), 400, "request_parsing_error"),
    (body(historical_migration="yes"), 400, "request_parsing_error"),
    (
        body([dict(REST, properties="@")]).replace(b'"@"', b"[" * 5000 + b"]" * 5000),
        400,
        "request_parsing_error",
    ),
    (body([]), 400, "empty_batch"),
    (body([], created_at="today"), 400, "empty_batch"),
    (body(created_at="today"), 400, "invalid_batch"),
    (body(created_at="2026-01-02"), 400, "invalid_batch"),
    (body([dict(REST, uuid="")], created_at="today"), 400, "invalid_batch"),
    (body([dict(REST, uuid="")]), 400, "missing_event_uuid"),
    (body([dict(REST, uuid="  ")]), 400, "missing_event_uuid"),
    (body([dict(REST, uuid="7")]), 400, "invalid_event_uuid"),
    (body([REST, dict(REST, event="")]), 400, "duplicate_event_uuid"),
    (body([REST, dict(REST, uuid=A_UUID.upper())]), 400, "duplicate_event_uuid"),
]


@pytest.mark.parametrize(("content", "status", "tag"), BODY_FAULTS)
def test_faults_of_bodies(capture: Any, v1: Any, content: bytes, status: int, tag: str) -> None:
    """The whole batch is refused, and nothing of it is kept."""
    response = v1(content=content)
    check_error(response, status, tag)
    assert capture.records_of(response) == []


def test_a_fault_names_the_event(v1: Any, event: Any) -> None:
    """Its place in the batch, and what it said."""
    response = v1(event(), event(uuid="seven"))
    assert "event 1" in response.json()["error_description"]
    assert "seven" in response.json()["error_description"]


def test_too_many_events_are_too_large(v1: Any) -> None:
    """More than the queue to Kafka takes at once is a 413, after which an SDK drops the batch."""
    events = [dict(REST, uuid=str(uuid.UUID(int=n))) for n in range(50_001)]
    check_error(v1(content=body(events)), 413, "payload_too_large")


def test_a_body_over_the_limit(capture: Any, v1: Any, event: Any) -> None:
    """By its declared length, and the connection lives on."""
    check_error(v1(content=b" " * ((10 << 20) + 1)), 413, "payload_too_large")
    assert v1(event()).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", gzip.compress(b" " * (60 << 20))),
        ("br", brotli.compress(b" " * (60 << 20), quality=5)),
        ("zstd", zstandard.compress(b" " * (60 << 20))),
    ],
)
def test_a_bomb_is_too_large(v1: Any, encoding: str, bomb: bytes) -> None:
    """A small body that inflates to a large one."""
    response = v1(content=bomb, headers={"Content-Encoding": encoding})
    check_error(response, 413, "payload_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_is_not_what_its_header_says(v1: Any, encoding: str) -> None:
    """Plain JSON declared as compressed is not guessed at."""
    response = v1(content=body(), headers={"Content-Encoding": encoding})
    check_error(response, 400, "request_decoding_error")


def test_compression_is_not_sniffed(v1: Any) -> None:
    """Unlike in v0, gzip without its header is no JSON."""
    check_error(v1(content=gzip.compress(body())), 400, "request_parsing_error")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
@pytest.mark.parametrize("path", V1_PATHS)
def test_other_methods_are_refused(capture: Any, path: str, method: str) -> None:
    """With the methods that are allowed."""
    response = capture.client.request(method, path)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST, OPTIONS"


def test_the_request_id_is_echoed_on_every_answer(v1: Any, event: Any) -> None:
    """As the client wrote it, also on refusals, unless it is no UUID by its length alone."""
    mine = A_UUID.upper()
    assert v1(event(), headers={"PostHog-Request-Id": mine}).headers["PostHog-Request-Id"] == mine
    refused = v1(content=b"{", headers={"PostHog-Request-Id": mine})
    assert refused.headers["PostHog-Request-Id"] == mine
    assert "PostHog-Request-Id" not in v1(headers={"PostHog-Request-Id": None}).headers
    assert "PostHog-Request-Id" not in v1(headers={"PostHog-Request-Id": "x" * 999}).headers


@pytest.mark.parametrize("content", [body(), b"{"])
def test_every_answer_has_its_headers(v1: Any, content: bytes) -> None:
    """The receipt, the time of receipt by our clock, and CORS with what a page may read."""
    response = v1(content=content, headers={"Origin": ORIGIN})
    assert uuid.UUID(response.headers["X-Request-Id"]).version == 7
    age = datetime.now(UTC) - parsedate_to_datetime(response.headers["Date"])
    assert abs(age.total_seconds()) < 60
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"PostHog-Request-Id", "Retry-After", "Date", "X-Request-Id"} <= set(exposed)


def test_preflight(capture: Any) -> None:
    """A page may send what the protocol needs, by POST alone."""
    wanted = "authorization,content-type,content-encoding,posthog-attempt,posthog-request-id"
    response = capture.client.options(
        V1_PATHS[0],
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": wanted,
        },
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert response.headers["Access-Control-Allow-Headers"] == wanted


def test_an_unknown_token_is_told_what_to_do(v1: Any, event: Any) -> None:
    """The same help as in v0."""
    response = v1(event(), headers={"Authorization": "Bearer phc_nobody"})
    assert "tidemark projects list" in response.json()["error_description"]


def test_projects_come_and_go(
    capture: Any, v1: Any, event: Any, until: Callable[..., None]
) -> None:
    """A new project works from its first request; a revoked one is refused soon."""
    project = create_project(capture.ledger, "short-lived")
    headers = {"Authorization": f"Bearer {project.token}"}
    assert v1(event(), headers=headers).status_code == 200
    revoke_project(capture.ledger, project.project_id)
    until(lambda: v1(event(), headers=headers).status_code == 401, "the revoked token is refused")


def check_error(response: httpx.Response, status: int, tag: str) -> None:
    """An error in the protocol's form, with Retry-After where the protocol has it."""
    assert (response.status_code, response.json().get("error")) == (status, tag), response.text
    assert ERRORS[tag][0] == status
    assert response.json().keys() == {"error", "error_description", "error_uri"}
    assert len(response.json()["error_description"]) > 10
    assert response.json()["error_uri"] == "/docs"
    assert response.headers.get("Retry-After") == ("1" if status in RETRIED else None)
