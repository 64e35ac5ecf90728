"""Where events go: rules by strength, dry runs, historical, hot keys."""

from __future__ import annotations

from typing import Any

import pytest

from capture_api.protection.hot_keys import HotKeys
from capture_api.protection.routing import Place, Router, RuleBook, Topics, Why
from orchestration.ledger.rules import Action, Rule
from orchestration.settings import Mode

TOPICS = Topics("events", "events_historical", "events_overflow")
KEY = b"t:d"


def rule(action: Action, **fields: Any) -> Rule:
    """A rule for project 7."""
    given = {
        "rule_id": 1,
        "topic": None,
        "project_id": 7,
        "distinct_id": None,
        "event": None,
        "dry_run": False,
        "note": "",
        "created_at": 0,
        **fields,
    }
    return Rule(action=action, **given)


def place(*rules: Rule, historical: bool = False, project_id: int = 7, **options: Any) -> Place:
    """The place of the event `e` of `d`."""
    router = Router(TOPICS, None, book=RuleBook(rules), **options)
    return router.route(project_id, historical).place(KEY, "e", "d")


PARK = rule(Action.TOPIC, topic="parked")
DROP, OVERFLOW, HISTORICAL = rule(Action.DROP), rule(Action.OVERFLOW), rule(Action.HISTORICAL)


@pytest.mark.parametrize(
    ("rules", "topic", "key"),
    [
        ([], "events", KEY),
        ([DROP], None, KEY),
        ([OVERFLOW], "events_overflow", None),
        ([HISTORICAL], "events_historical", KEY),
        ([PARK], "parked", KEY),
        ([OVERFLOW, HISTORICAL, PARK, DROP], None, KEY),
        ([OVERFLOW, HISTORICAL, PARK], "parked", KEY),
        ([OVERFLOW, HISTORICAL], "events_historical", KEY),
        ([rule(Action.DROP, project_id=8)], "events", KEY),
        ([rule(Action.DROP, project_id=None, event="e")], None, KEY),
        ([rule(Action.DROP, event="other")], "events", KEY),
        ([rule(Action.DROP, event="e", distinct_id="d")], None, KEY),
        ([rule(Action.DROP, event="e", distinct_id="other")], "events", KEY),
        ([rule(Action.DROP, dry_run=True)], "events", KEY),
        ([rule(Action.DROP, dry_run=True), OVERFLOW], "events_overflow", None),
    ],
)
def test_rules_decide_by_strength(rules: list[Rule], topic: str | None, key: bytes | None) -> None:
    """Dropping goes before a named topic, that before historical and overflow; all fields match."""
    assert place(*rules)[:2] == (topic, key)


def test_historical_events_never_overflow() -> None:
    """They stay where they hold up nobody, by rule and when hot."""
    assert place(OVERFLOW, historical=True) == Place("events_historical", KEY, None)
    router = Router(TOPICS, HotKeys(0.1))
    route = router.route(7, True)
    assert {route.place(KEY, "e", "d").topic for _ in range(10)} == {"events_historical"}


@pytest.mark.parametrize(
    ("mode", "keeps_key", "expected"),
    [
        (Mode.ENFORCE, False, Place("events_overflow", None, Why.HOT_KEY)),
        (Mode.ENFORCE, True, Place("events_overflow", KEY, Why.HOT_KEY)),
        (Mode.DRY_RUN, False, Place("events", KEY, None)),
    ],
)
def test_hot_keys_overflow(mode: Mode, keeps_key: bool, expected: Place) -> None:
    """Spread over partitions, or kept together; in a dry run only counted."""
    router = Router(TOPICS, HotKeys(0.1), mode, keeps_key)
    route = router.route(7, False)
    places = [route.place(KEY, "e", "d") for _ in range(10)]
    assert places[0] == Place("events", KEY, None)
    assert places[-1] == expected
    assert router.seen[Why.HOT_KEY, 0, mode is Mode.DRY_RUN] > 0


def test_dry_runs_are_counted_where_they_would_decide() -> None:
    """Each rule by its id: a dry run that a weaker rule follows shows, one after a stronger not."""
    rules = [
        rule(Action.DROP, rule_id=3),
        rule(Action.DROP, rule_id=2, dry_run=True, event="e"),
        rule(Action.OVERFLOW, rule_id=4),
        rule(Action.TOPIC, rule_id=5, dry_run=True, topic="parked"),
    ]
    router = Router(TOPICS, None)
    for present in (rules[1:], rules[::-1], rules[2:]):
        router.book = RuleBook(sorted(present, key=lambda one: one.rule_id))
        router.route(7, False).place(KEY, "e", "d")
    assert dict(router.seen) == {
        (Why.RULE_DROP, 2, True): 2,
        (Why.RULE_DROP, 3, False): 1,
        (Why.RULE_TOPIC, 5, True): 2,
        (Why.RULE_OVERFLOW, 4, False): 2,
    }
