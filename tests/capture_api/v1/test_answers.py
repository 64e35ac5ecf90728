"""Refusals that both protocols share, in protocol v1's words."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from capture_api.refusal import Refused
from capture_api.v1.answers import ERRORS, error_answer

SHARED = [
    (Refused(400, "bad_gzip", "…"), 400, "request_decoding_error", None),
    (Refused(400, "client_gone", "…"), 400, "request_decoding_error", None),
    (Refused(401, "invalid_token", "…"), 401, "invalid_api_token", None),
    (Refused(402, "quota", "…"), 402, "billing_limit_exceeded", None),
    (Refused(408, "body_stalled", "…"), 408, "body_read_timeout", "1"),
    (Refused(413, "too_large", "…"), 413, "payload_too_large", None),
    (Refused(429, "rate_limited", "…", 7), 429, "rate_limited", "7"),
    (Refused(500, "internal_error", "…"), 500, "internal_error", "1"),
    (Refused(503, "topic_missing", "…", 5), 503, "service_unavailable", "1"),
    (Refused(418, "teapot", "…"), 500, "internal_error", "1"),
]


@pytest.mark.parametrize(("refused", "status", "tag", "retry_after"), SHARED)
def test_a_shared_refusal_has_a_tag(
    refused: Refused, status: int, tag: str, retry_after: str | None
) -> None:
    """By its status, with Retry-After where an SDK sends the batch again."""
    answer = error_answer(refused)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    assert (answer.status, json.loads(answer.body)["error"]) == (status, tag)
    assert ERRORS[tag][0] == status
    assert headers.get("retry-after") == retry_after


def test_a_body_that_stalls_is_answered_408(
    kafka: str, new_capture: Callable[..., Any], head: Callable[..., dict[str, str]]
) -> None:
    """In the protocol's form, and the connection ends."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_STALL_TIMEOUT_SECONDS="0.5").start()
    lines = [f"{name}: {value}" for name, value in head().items()]
    lines = [line for line in lines if not line.startswith("Authorization")]
    lines += [f"Authorization: Bearer {capture.token}", "Host: x", "Content-Length: 99"]
    request = "\r\n".join(["POST /i/v1/analytics/events HTTP/1.1", *lines, "", "{"])
    received = b""
    with socket.create_connection(("127.0.0.1", capture.port), 30) as connection:
        connection.sendall(request.encode())
        while part := connection.recv(65536):
            received += part
    start, _, body = received.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 408 ")
    assert b"retry-after: 1" in start.lower()
    assert json.loads(body)["error"] == "body_read_timeout"
