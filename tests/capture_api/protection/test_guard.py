"""Limits, quotas, overflow and rules as clients meet them, on a running capture API."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from capture_api.projects import Projects
from capture_api.protection.guard import Guard
from capture_api.refusal import Refused
from orchestration.ledger.projects import Limits, create_project, set_limits
from orchestration.ledger.rules import Action, add_rule, remove_rule
from orchestration.settings import Settings
from tests.capture_api.protection.test_shared import RedisServer, redis

__all__ = ["redis"]

EVENT = {"event": "e", "distinct_id": "d"}
ORIGIN = {"Origin": "https://shop.example"}


def value_of(capture: Any, name: str, **labels: str) -> float:
    """The value of a metric that /metrics shows, or 0."""
    text = capture.client.get("/metrics").text
    return next(
        (
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ),
        0.0,
    )


def post(capture: Any, *events: dict[str, Any], token: str = "") -> httpx.Response:
    """Send a batch."""
    body = {**capture.batch(*events), "api_key": token or capture.token}
    response: httpx.Response = capture.client.post("/batch", json=body, headers=ORIGIN)
    return response


def test_a_project_beyond_its_rate_is_told_when_to_come_back(
    kafka: str, new_capture: Callable[..., Any]
) -> None:
    """429 with Retry-After and CORS; another project goes on; nothing of a 429 is in Kafka."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_PROJECT_EVENTS_PER_SECOND="0.02",
        TIDEMARK_CAPTURE_PROJECT_BURST_EVENTS="5",
    ).start()
    assert [post(capture, EVENT).status_code for _ in range(5)] == [200] * 5
    refused = post(capture, {**EVENT, "event": "too much"})
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 50
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    other = create_project(capture.ledger, "other")
    assert post(capture, *[EVENT] * 20, token=other.token).status_code == 200
    assert {record.value["event"] for record in capture.records()} == {"e"}
    limits = {"limit": "project", "dry_run": "false"}
    assert value_of(capture, "capture_limits_reached_total", **limits) == 1
    assert value_of(capture, "capture_requests_refused_total", code="rate_limited") == 1


def test_each_of_a_burst_is_told_another_time(kafka: str, new_capture: Callable[..., Any]) -> None:
    """Behind those refused before it, half a minute at the most; browsers take up no place."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_PROJECT_EVENTS_PER_SECOND="10",
        TIDEMARK_CAPTURE_PROJECT_BURST_EVENTS="1",
    ).start()
    assert post(capture, *[EVENT] * 40).status_code == 200  # paid off for 4 s
    told = []
    for agent in [*["Mozilla/5.0 (X11)"] * 10, *["posthog-go/1.23.1"] * 10]:
        body = capture.batch(*[EVENT] * 40)
        refused = capture.client.post("/batch", json=body, headers={"User-Agent": agent})
        assert refused.status_code == 429
        told.append(int(refused.headers["Retry-After"]))
        assert f"in {told[-1]} s" in refused.json()["detail"]
    assert max(told[:11]) <= 4
    turns = told[10:15]
    assert all(4 <= later - earlier <= 6 for earlier, later in pairwise(turns))
    assert all(25 <= seconds <= 30 for seconds in told[16:])


def test_a_projects_own_limit_goes_before_the_setting(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """What `tidemark projects limit` says is obeyed within seconds, 0 meaning no limit."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_PROJECT_EVENTS_PER_SECOND="0.02",
        TIDEMARK_CAPTURE_PROJECT_BURST_EVENTS="1",
        TIDEMARK_CAPTURE_PROJECT_REFRESH_SECONDS="0.1",
    ).start()
    assert post(capture, EVENT).status_code == 200
    assert post(capture, EVENT).status_code == 429
    set_limits(capture.ledger, capture.project.project_id, Limits(0, None, None))
    until(lambda: post(capture, EVENT).status_code == 200, "the project's own limit holds")
    assert [post(capture, EVENT).status_code for _ in range(5)] == [200] * 5


def test_an_address_beyond_its_rate_is_told_before_its_body_is_read(
    kafka: str, new_capture: Callable[..., Any]
) -> None:
    """429 for the address, whatever it sends or asks for; its connection stays usable."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_ADDRESS_REQUESTS_PER_SECOND="0.02",
        TIDEMARK_CAPTURE_ADDRESS_BURST_REQUESTS="2",
    ).start()
    statuses = [capture.client.post("/e", content=b"nonsense" * 1000).status_code for _ in range(4)]
    assert statuses == [400, 400, 429, 429]
    paths = ["flags/", "decide/?v=3", "array/x/config", "array/x/config.js"]
    for path in paths:
        ask = capture.client.get if path.startswith("array") else capture.client.post
        refused = ask(f"/{path}", headers=ORIGIN)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited"), path
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert capture.status("/_readiness") == 200


def test_an_ipv6_address_counts_by_its_network(settings: Callable[..., Settings]) -> None:
    """Whoever has a /64 has one bucket for it, however the addresses are spelled."""
    found = settings(capture_address_requests_per_second=0.001, capture_address_burst_requests=2)
    guard = Guard(found, Projects(found))
    for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1", "", "a:socket"):
        guard.admit_request(address)
    with pytest.raises(Refused, match="too many requests"):
        guard.admit_request("2001:db8:1:2:a:b:c:d")


def test_dry_runs_refuse_nobody(kafka: str, new_capture: Callable[..., Any]) -> None:
    """Limits, quotas and overflow that are only tried out are counted, and change nothing."""
    capture = new_capture(
        kafka,
        TIDEMARK_CAPTURE_RATE_LIMITS="dry_run",
        TIDEMARK_CAPTURE_PROJECT_EVENTS_PER_SECOND="0.02",
        TIDEMARK_CAPTURE_PROJECT_BURST_EVENTS="1",
        TIDEMARK_CAPTURE_ADDRESS_REQUESTS_PER_SECOND="0.02",
        TIDEMARK_CAPTURE_ADDRESS_BURST_REQUESTS="1",
        TIDEMARK_CAPTURE_QUOTAS="dry_run",
        TIDEMARK_CAPTURE_DAILY_QUOTA="3",
        TIDEMARK_CAPTURE_OVERFLOW="dry_run",
        TIDEMARK_CAPTURE_OVERFLOW_EVENTS_PER_SECOND="0.1",
    ).start()
    for _ in range(6):
        response = post(capture, EVENT)
        assert (response.status_code, response.json()) == (200, {"status": "Ok"})
    assert len(capture.records()) == 6
    assert capture.records("_overflow") == []
    for limit in ("project", "address", "quota"):
        labels = {"limit": limit, "dry_run": "true"}
        assert value_of(capture, "capture_limits_reached_total", **labels) > 0, limit
    hot = {"cause": "hot_key", "rule": "", "dry_run": "true"}
    assert value_of(capture, "capture_event_restrictions_applied_total", **hot) > 0


def test_over_quota_is_said_and_not_kept(kafka: str, new_capture: Callable[..., Any]) -> None:
    """PostHog's 200, so that SDKs do not send again; the answer says so, and browsers pause."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_DAILY_QUOTA="10").start()
    assert post(capture, *[EVENT] * 10).json() == {"status": "Ok"}
    response = post(capture, {**EVENT, "event": "beyond"})
    assert response.status_code == 200
    assert response.json()["quota_limited"] == ["events"]
    assert "not kept" in response.json()["detail"]
    assert [record.value["event"] for record in capture.records()] == ["e"] * 10
    assert value_of(capture, "capture_events_dropped_total", cause="quota") == 1


def test_a_hot_key_overflows_and_nobody_else(kafka: str, new_capture: Callable[..., Any]) -> None:
    """The noisy user's events go to the overflow topic, over its partitions; none is lost."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_OVERFLOW_EVENTS_PER_SECOND="5").start()
    for number in range(20):
        noisy = [{**EVENT, "distinct_id": "noisy"}] * 20
        assert post(capture, *noisy, {**EVENT, "distinct_id": f"q{number}"}).status_code == 200
    main, overflow = capture.records(), capture.records("_overflow")
    assert len(main) + len(overflow) == 420
    assert {record.value["distinct_id"] for record in overflow} == {"noisy"}
    assert len(overflow) > 300
    assert {record.key for record in overflow} == {None}
    assert value_of(capture, "capture_events_rerouted_total", cause="hot_key") == len(overflow)


def test_rules_take_effect_within_seconds(
    kafka: str, new_capture: Callable[..., Any], until: Any
) -> None:
    """Dropped, sent elsewhere, or only counted; and when the rule goes, all is as before."""
    capture = new_capture(kafka, TIDEMARK_CAPTURE_PROJECT_REFRESH_SECONDS="0.1").start()
    project_id = capture.project.project_id
    assert post(capture, EVENT).status_code == 200
    add_rule(capture.ledger, Action.OVERFLOW, project_id=project_id, distinct_id="noisy")
    tried = add_rule(capture.ledger, Action.DROP, project_id=project_id, event="e", dry_run=True)
    # The last of them: a worker reads rules all at once, so that who has this one has them all.
    drop = add_rule(capture.ledger, Action.DROP, project_id=project_id, event="spam")

    def dropped() -> bool:
        assert post(capture, {**EVENT, "event": "spam"}).json() == {"status": "Ok"}
        return value_of(capture, "capture_events_dropped_total", cause="rule_drop") > 0

    until(dropped, "the rule drops")
    spam = sum(record.value["event"] == "spam" for record in capture.records())
    mixed = post(capture, {**EVENT, "event": "spam"}, EVENT, {**EVENT, "distinct_id": "noisy"})
    assert mixed.status_code == 200
    kept = [(r.value["event"], r.value["distinct_id"]) for r in capture.records_of(mixed)]
    assert kept == [("e", "d")]
    assert [r.value["distinct_id"] for r in capture.records("_overflow")] == ["noisy"]
    assert sum(record.value["event"] == "spam" for record in capture.records()) == spam
    dry = {"cause": "rule_drop", "rule": str(tried.rule_id), "dry_run": "true"}

    def seen() -> bool:
        assert post(capture, EVENT).status_code == 200
        return value_of(capture, "capture_event_restrictions_applied_total", **dry) > 0

    until(seen, "the dry run is counted")

    remove_rule(capture.ledger, drop.rule_id)
    until(
        lambda: len(capture.records_of(post(capture, {**EVENT, "event": "spam"}))) == 1,
        "the rule is gone",
    )


def test_replicas_share_a_projects_rate(
    kafka: str, new_capture: Callable[..., Any], redis: RedisServer, until: Any
) -> None:
    """What a project has sent to one replica counts at the other."""
    shared = {
        "TIDEMARK_CAPTURE_REDIS_URL": redis.url,
        "TIDEMARK_CAPTURE_PROJECT_EVENTS_PER_SECOND": "0.01",
        "TIDEMARK_CAPTURE_PROJECT_BURST_EVENTS": "500",
    }
    first = new_capture(kafka, **shared).start()
    ledger = f"sqlite:///{first.home / 'ledger.db'}"
    second = new_capture(kafka, **shared, TIDEMARK_LEDGER_URL=ledger).start()
    assert post(first, EVENT).status_code == 200
    assert post(second, EVENT, token=first.token).status_code == 200
    assert post(first, *[EVENT] * 600).status_code == 200
    until(
        lambda: post(second, EVENT, token=first.token).status_code == 429,
        "the other replica knows of it",
    )
    redis.kill()
    fresh = create_project(first.ledger, "fresh")

    def told() -> bool:
        assert post(first, EVENT, token=fresh.token).status_code == 200
        return value_of(first, "capture_limits_unshared") == 1

    until(told, "metrics say that limits are not shared")
