"""PostHog's own Python SDK in its v1 mode is content, with every compression it has."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from posthog import Posthog


def client(capture: Any, failures: list[Any], **more: Any) -> Posthog:
    """The SDK in v1 mode; what it gives up on is in `failures`."""
    return Posthog(
        capture.token,
        host=capture.url,
        capture_mode="v1",
        on_error=lambda error, _batch: failures.append(error),
        disable_geoip=True,
        **more,
    )


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate", "zstd"])
def test_python_sdk(capture: Any, compression: str) -> None:
    """Its events arrive with what it says about them, under the uuids it gave them."""
    failures: list[Any] = []
    sdk = client(capture, failures, capture_compression=compression)
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    person = f"person-{compression}"
    properties = {"n": 1, "text": "é\u2028", "$session_id": "s", "$process_person_profile": False}
    sent = [
        sdk.capture("plain", distinct_id=person, properties=properties),
        sdk.capture("dated", distinct_id=person, timestamp=at),
        sdk.set(distinct_id=person, properties={"email": "p@example.com"}),
        sdk.alias("previous", person),
        sdk.capture("$ai_generation", distinct_id=person),
    ]
    sdk.shutdown()

    assert failures == []
    found = {r.value["uuid"]: r.value for r in capture.records() if r.value["uuid"] in sent}
    plain, dated, set_, alias, ai = (found[uuid] for uuid in sent)
    assert plain["properties"].items() >= properties.items()
    assert plain["properties"]["$lib"] == "posthog-python"
    assert plain["properties"]["$lib_version"]
    assert plain["sdk"].startswith("posthog-python/")
    assert dated["timestamp"] == round(at.timestamp() * 1000) * 1000
    assert set_["properties"]["$set"] == {"email": "p@example.com"}
    assert alias["event"] == "$create_alias"
    assert ai["event"] == "$ai_generation"


def test_python_sdk_is_told_of_each_event_that_is_dropped(capture: Any) -> None:
    """With its uuid and why, while the others of its batch are kept."""
    failures: list[Any] = []
    sdk = client(capture, failures)
    kept = sdk.capture("good", distinct_id="d")
    dropped = sdk.capture("bad", distinct_id="d" * 201)
    sdk.shutdown()
    assert [error.drops for error in failures] == [[(dropped, "distinct_id_too_large")]]
    assert kept in {record.value["uuid"] for record in capture.records()}


def test_python_sdk_imports_history(capture: Any) -> None:
    """Its historical migration goes to the topic of such."""
    failures: list[Any] = []
    sdk = client(capture, failures, historical_migration=True)
    sent = sdk.capture("old", distinct_id="d", timestamp=datetime(2020, 1, 1, tzinfo=UTC))
    sdk.shutdown()
    assert failures == []
    assert sent in {record.value["uuid"] for record in capture.records("_historical")}
