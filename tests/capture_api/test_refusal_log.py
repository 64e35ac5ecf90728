"""Refusals are told one by one while they are few, and counted when they are many."""

from __future__ import annotations

import asyncio
import logging

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


def test_lines_about_failed_connections_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka's FAIL lines go; its others stay."""
    log = client_log()
    log.error("%s [%s] %s", "FAIL", "rdkafka#producer-1", "Connect to ... failed")
    log.error("%s [%s] %s", "MAXPOLL", "rdkafka#producer-1", "something else")
    assert caplog.messages == ["MAXPOLL [rdkafka#producer-1] something else"]
    assert client_log().filters == log.filters
    assert len(log.filters) == 1
