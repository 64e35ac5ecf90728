"""PostHog's own Python SDK sends to the capture API and is content."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from posthog import Posthog


@pytest.mark.parametrize("gzip", [False, True])
def test_python_sdk(capture: Any, gzip: bool) -> None:
    """Its events arrive with what it says about them, plain and compressed."""
    failures: list[Any] = []
    client = Posthog(
        capture.token,
        host=capture.url,
        gzip=gzip,
        on_error=lambda error, _batch: failures.append(error),
        disable_geoip=True,
    )
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    person = f"person-{gzip}"
    sent = [
        client.capture("plain", distinct_id=person, properties={"n": 1, "text": "é\u2028"}),
        client.capture("dated", distinct_id=person, timestamp=at),
        client.set(distinct_id=person, properties={"email": "p@example.com"}),
        client.alias("previous", person),
    ]
    client.shutdown()

    assert failures == []
    found = {r.value["uuid"]: r.value for r in capture.records() if r.value["uuid"] in sent}
    plain, dated, set_, alias = (found[uuid] for uuid in sent)
    assert plain["properties"]["text"] == "é\u2028"
    assert plain["properties"]["$lib"] == "posthog-python"
    assert plain["sdk"].startswith("posthog-python/")
    assert dated["timestamp"] == round(at.timestamp() * 1000) * 1000
    assert set_["properties"]["$set"] == {"email": "p@example.com"}
    assert alias["event"] == "$create_alias"


def test_python_sdk_asks_for_flags_in_peace(capture: Any) -> None:
    """It is told that there are none, without an error."""
    client = Posthog(capture.token, host=capture.url)
    assert client.get_all_flags("d") == {}
    client.shutdown()


def test_python_sdk_beyond_its_projects_limit(kafka: str, new_capture: Callable[..., Any]) -> None:
    """Of a burst that takes the limit ten seconds more nothing is given up, in four tries each.

    Many threads send side by side, so that each batch is refused beside others.
    """
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_PROJECT_EVENTS_PER_SECOND="100",
        TIDEMARK_CAPTURE_PROJECT_BURST_EVENTS="200",
    ).start()
    failures: list[Any] = []
    client = Posthog(
        capture.token,
        host=capture.url,
        thread=24,
        flush_at=50,
        on_error=lambda error, _batch: failures.append(error),
    )
    sent = {client.capture("tick", distinct_id=f"p{n}") for n in range(1_200)}
    client.flush(timeout_seconds=60)
    client.shutdown()
    assert failures == []
    assert {record.value["uuid"] for record in capture.records()} == sent
    refused = ("capture_requests_refused_total", ("rate_limited",))
    assert capture.samples()[refused] > 0
