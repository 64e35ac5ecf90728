"""Protocol v1 behind the edge's protections: limits, quotas, rules and hot keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from capture_api.events.record import FLAG_PERSONLESS
from orchestration.ledger.projects import Limits, create_project, set_limits
from orchestration.ledger.rules import Action, add_rule

REFRESH = {"TIDEMARK_CAPTURE_PROJECT_REFRESH_SECONDS": "0.1"}


@pytest.fixture(scope="module")
def capture(kafka: str, new_capture: Callable[..., Any]) -> Any:
    """A capture API with rules, and hardly any patience with one person's events."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_OVERFLOW_EVENTS_PER_SECOND="2", **REFRESH)
    add_rule(capture.ledger, Action.DROP, event="unwanted")
    add_rule(capture.ledger, Action.HISTORICAL, event="late")
    return capture.start()


def limited(capture: Any, name: str, limits: Limits) -> dict[str, str]:
    """The headers for a new project with limits of its own."""
    project = create_project(capture.ledger, name)
    set_limits(capture.ledger, project.project_id, limits)
    return {"Authorization": f"Bearer {project.token}"}


def test_a_rule_drops_its_events_alone(capture: Any, v1: Any, event: Any) -> None:
    """The client is told why, and the rest of the batch is kept."""
    unwanted, wanted = event(event="unwanted"), event(distinct_id="bob")
    response = v1(unwanted, wanted)
    assert response.json()["results"] == {
        unwanted["uuid"]: {"result": "drop", "details": "event_restriction_drop"},
        wanted["uuid"]: {"result": "ok"},
    }
    assert [r.value["uuid"] for r in capture.records_of(response)] == [wanted["uuid"]]


def test_a_rule_sends_its_events_elsewhere(capture: Any, v1: Any, event: Any) -> None:
    """To another topic, and the client need not know."""
    late = event(event="late", distinct_id="carl")
    response = v1(late)
    assert response.json()["results"] == {late["uuid"]: {"result": "ok"}}
    assert [r.value["uuid"] for r in capture.records_of(response, "_historical")] == [late["uuid"]]


def test_a_hot_key_overflows_with_a_warning(
    capture: Any, v1: Any, event: Any, until: Callable[..., None]
) -> None:
    """Its events are kept, in any order, so no person is made of them; and the client is told."""
    seen = []

    def overflowing() -> bool:
        sent = [event(distinct_id="hot") for _ in range(20)]
        response = v1(*sent)
        results = response.json()["results"]
        warned = {uuid for uuid, found in results.items() if found["result"] == "warning"}
        records = capture.records_of(response, "_overflow")
        assert {record.value["uuid"] for record in records} == warned
        assert all(record.value["flags"] == FLAG_PERSONLESS for record in records)
        assert len(warned) + len(capture.records_of(response)) == 20
        seen.append(len(warned))
        return bool(warned)

    until(overflowing, "events overflow")


def test_a_project_over_its_quota(
    capture: Any, v1: Any, event: Any, until: Callable[..., None]
) -> None:
    """Each event is dropped with the details of a quota, in a 200 that nobody sends again."""
    headers = limited(capture, "small", Limits(None, None, 3))
    assert v1(*(event(distinct_id=f"q{n}") for n in range(3)), headers=headers).status_code == 200

    def over_quota() -> bool:
        response = v1(event(), headers=headers)
        assert response.status_code == 200
        (result,) = response.json()["results"].values()
        return result == {"result": "drop", "details": "billing_limit_exceeded"}

    until(over_quota, "the quota is reached")


def test_a_project_over_its_rate(capture: Any, v1: Any, event: Any) -> None:
    """429 in the protocol's form, with Retry-After for those who read it."""
    headers = limited(capture, "slow", Limits(1, 5, None))
    events = [event(distinct_id=f"r{n}") for n in range(5)]
    statuses = [v1(*events, headers=headers).status_code for _ in range(3)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    response = v1(*events, headers=headers)
    assert response.json()["error"] == "rate_limited"
    assert 1 <= int(response.headers["Retry-After"]) <= 10
