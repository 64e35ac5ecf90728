"""Refusals are told one by one while they are few, and counted when they are many."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from capture_api import refusal_log
from capture_api.kafka.client_log import client_log
from capture_api.refusal import bad_request, try_later
from capture_api.refusal_log import LINES_PER_WINDOW, RefusalLog

SCOPE = {"method": "POST", "path": "/batch\n" + "x" * 10_000, "client": ("10.0.0.1", 5)}


def test_flood_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So many lines a window, then one with the count of the rest, and then lines again."""
    monkeypatch.setattr(refusal_log, "WINDOW_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "tidemark.capture")

    async def main() -> None:
        refusals = RefusalLog()
        for _ in range(LINES_PER_WINDOW + 7):
            refusals.tell(SCOPE, {b"user-agent": b"u\x85"}, "receipt", bad_request("a\nb"))
        assert len(caplog.messages) == LINES_PER_WINDOW
        while len(caplog.messages) == LINES_PER_WINDOW:
            await asyncio.sleep(0)
        assert caplog.messages[-1].startswith("refused 7 more requests")
        refusals.tell(SCOPE, {}, "receipt", bad_request("again"))
        assert "'again'" in caplog.messages[-1]

    asyncio.run(main())
    assert all(len(message.splitlines()) == 1 for message in caplog.messages)
    assert not any("10.0.0.1" in message for message in caplog.messages)
    assert all(len(message) < 1_500 for message in caplog.messages)


def test_outages_are_not_told_by_request(caplog: pytest.LogCaptureFixture) -> None:
    """A 503 leaves no line: the part that is away says so once."""
    caplog.set_level(logging.INFO, "tidemark.capture")
    RefusalLog().tell(SCOPE, {}, "receipt", try_later("away", "later"))
    assert caplog.messages == []


def refused_line(
    capture: Any, until: Any, path: str, content: bytes, headers: dict[str, str]
) -> str:
    """The log line of the refusal of a request, by its receipt."""
    response = capture.client.post(path, content=content, headers=headers)
    assert response.is_client_error
    receipt = response.headers["X-Request-Id"]

    def lines() -> list[str]:
        return [line for line in capture.log().splitlines() if receipt in line]

    until(lambda: bool(lines()), "the refusal is logged")
    return lines()[0]


def test_log_lines_quote_what_the_sender_controls(capture: Any, until: Any) -> None:
    """Path and user agent stand in the log as quoted text, without raw control characters."""
    line = refused_line(capture, until, "/batch", b"{}", {"User-Agent": "a\tb"})
    assert "POST '/batch' with 401" in line
    assert r"'a\tb'" in line


OWN = "ada@example.org"
NUMBER = "31415926e999"
V1_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "posthog-rs/1",
    "PostHog-Sdk-Info": "posthog-rs/1",
    "PostHog-Attempt": "1",
    "PostHog-Request-Id": "018f3b5c-0000-7000-8000-0123456789ab",
    "PostHog-Request-Timestamp": "2026-01-01T00:00:00Z",
}
V1_EVENT = {"event": "e", "uuid": OWN, "distinct_id": "d", "timestamp": "2026-01-01T00:00:00Z"}
EVENT = {"event": "e", "distinct_id": "d"}


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        ("bad_uuid", [{**EVENT, "uuid": OWN}]),
        ("bad_uuid", [EVENT, {**EVENT, "uuid": OWN}]),
        ("bad_number", NUMBER),
        ("invalid_event_uuid", {"batch": [V1_EVENT], "created_at": "2026-01-01T00:00:00Z"}),
        ("invalid_batch", {"batch": [V1_EVENT], "created_at": OWN}),
        ("invalid_header_value", ("PostHog-Attempt", OWN)),
        ("invalid_header_value", ("PostHog-Request-Id", OWN)),
        ("invalid_header_value", ("PostHog-Request-Timestamp", OWN)),
        ("unsupported_content_type", ("Content-Type", OWN)),
        ("unsupported_encoding", ("Content-Encoding", OWN)),
    ],
)
def test_no_line_quotes_what_stands_in_an_event(
    capture: Any, until: Any, code: str, sent: Any
) -> None:
    """The client is told what it wrote; the log only what was wrong with it."""
    path, headers, body = "/batch", {}, capture.batch(EVENT)
    if isinstance(sent, list):
        body = capture.batch(*sent)
    elif isinstance(sent, str):
        body = capture.batch({**EVENT, "properties": {"salary": "?"}})
    else:
        path = "/i/v1/analytics/events"
        headers = {**V1_HEADERS, "Authorization": f"Bearer {capture.token}"}
        if isinstance(sent, tuple):
            headers[sent[0]] = sent[1]
        else:
            body = sent
    content = json.dumps(body).replace('"?"', NUMBER).encode()
    line = refused_line(capture, until, path, content, headers)
    assert f" {code}: " in line
    assert OWN not in line
    assert NUMBER not in line


def test_lines_about_failed_connections_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka's FAIL lines go; its others stay."""
    log = client_log()
    log.error("%s [%s] %s", "FAIL", "rdkafka#producer-1", "Connect to ... failed")
    log.error("%s [%s] %s", "MAXPOLL", "rdkafka#producer-1", "something else")
    assert caplog.messages == ["MAXPOLL [rdkafka#producer-1] something else"]
    assert client_log().filters == log.filters
    assert len(log.filters) == 1
