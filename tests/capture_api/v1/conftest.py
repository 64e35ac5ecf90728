"""Requests of protocol v1 as its SDKs make them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

PATH = "/i/v1/analytics/events"

V1 = Callable[..., httpx.Response]


def now() -> str:
    """This moment as SDKs write it."""
    return datetime.now(UTC).isoformat()


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    """Makes events, each with a uuid of its own; what is None is left out."""

    def make(**fields: Any) -> dict[str, Any]:
        whole = {
            "event": "order placed",
            "uuid": str(uuid.uuid4()),
            "distinct_id": "ada",
            "timestamp": now(),
            **fields,
        }
        return {name: value for name, value in whole.items() if value is not None}

    return make


@pytest.fixture
def head(capture: Any) -> Callable[..., dict[str, str]]:
    """Makes the headers of a good request; what is None is left out."""

    def make(headers: dict[str, str | None] | None = None) -> dict[str, str]:
        whole: dict[str, str | None] = {
            "Authorization": f"Bearer {capture.token}",
            "Content-Type": "application/json",
            "User-Agent": "posthog-rs/1.2.3",
            "PostHog-Sdk-Info": "posthog-rs/1.2.3",
            "PostHog-Attempt": "1",
            "PostHog-Request-Id": str(uuid.uuid4()),
            "PostHog-Request-Timestamp": now(),
            **(headers or {}),
        }
        return {name: value for name, value in whole.items() if value is not None}

    return make


@pytest.fixture
def v1(capture: Any, head: Callable[..., dict[str, str]]) -> V1:
    """Sends a request: events, or a body as it is, with headers changed and more in the batch."""

    def send(
        *events: dict[str, Any],
        headers: dict[str, str | None] | None = None,
        content: bytes | None = None,
        path: str = PATH,
        to: Any = capture,
        **batch: Any,
    ) -> httpx.Response:
        if content is None:
            content = json.dumps({"created_at": now(), "batch": list(events), **batch}).encode()
        request = httpx.Request("POST", f"{to.url}{path}", content=content)
        request.headers.clear()
        request.headers.update({"Host": "localhost", "Content-Length": str(len(content))})
        request.headers.update(head(headers))
        return to.client.send(request)

    return send
