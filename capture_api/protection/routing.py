"""Where the events of a request go: to their topic, to another one, or nowhere.

    a rule drops it  >  a rule names a topic  >  historical  >  overflow  >  the topic of events

A rule in a dry run is counted where it would decide, and passed over. Rules come from the ledger
(`tidemark rules`). Overflow is for keys that a rule names, and for hot ones; what goes there is
spread over partitions, unless it is to keep its key. Historical events never overflow: they hold up
nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from capture_api.protection.hot_keys import HotKeys
from orchestration.ledger.rules import Action, Rule
from orchestration.settings import Mode


class Topics(NamedTuple):
    """The topics that records go to."""

    events: str
    historical: str
    overflow: str


class Why(StrEnum):
    """Why an event does not simply go to its topic. Names of metrics' labels."""

    RULE_DROP = "rule_drop"
    RULE_TOPIC = "rule_topic"
    RULE_HISTORICAL = "rule_historical"
    RULE_OVERFLOW = "rule_overflow"
    HOT_KEY = "hot_key"


class Place(NamedTuple):
    """Where an event's record goes. No topic: it is dropped. No key: to any partition."""

    topic: str | None
    key: bytes | None
    why: Why | None


_STRENGTH = {Action.DROP: 0, Action.TOPIC: 1, Action.HISTORICAL: 2, Action.OVERFLOW: 3}


class RuleBook:
    """The rules, by the project they concern. Immutable; made anew when the rules change."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = tuple(rules)
        ordered = sorted(rules, key=lambda rule: _STRENGTH[rule.action])
        everybody = tuple(rule for rule in ordered if rule.project_id is None)
        named = {rule.project_id for rule in ordered if rule.project_id is not None}
        self._everybody = everybody
        self._of_project = {
            project_id: tuple(rule for rule in ordered if rule.project_id in (None, project_id))
            for project_id in named
        }

    def of(self, project_id: int) -> tuple[Rule, ...]:
        """The rules that may concern the project: strongest first, older ones before newer."""
        return self._of_project.get(project_id, self._everybody)


def matches(rule: Rule, event: str, distinct_id: str) -> bool:
    """Whether the rule, which concerns the project, concerns this event of it."""
    return (rule.event is None or rule.event == event) and (
        rule.distinct_id is None or rule.distinct_id == distinct_id
    )


@dataclass(slots=True)
class Router:
    """What decides about places; one a worker.

    `seen` counts what it decided, each rule by its id (a hot key has none: 0), dry runs apart.
    """

    topics: Topics
    hot_keys: HotKeys | None
    overflow: Mode = Mode.ENFORCE
    keeps_key: bool = False
    book: RuleBook = field(default_factory=RuleBook)
    seen: Counter[tuple[Why, int, bool]] = field(default_factory=Counter)

    def route(self, project_id: int, historical: bool) -> Route:
        """The routing of one request's events."""
        hot_keys = None if historical else self.hot_keys
        if hot_keys is not None:
            hot_keys.turn_window()
        topic = self.topics.historical if historical else self.topics.events
        return Route(self, topic, self.book.of(project_id), hot_keys, historical)


@dataclass(slots=True)
class Route:
    """Where the events of one request go."""

    router: Router
    topic: str
    rules: tuple[Rule, ...]
    hot_keys: HotKeys | None
    historical: bool

    def place(self, key: bytes, event: str, distinct_id: str) -> Place:
        """The place of one event's record, by its rules, or by how hot its key is."""
        for rule in self.rules:
            if matches(rule, event, distinct_id):
                place = self._by_rule(rule, key)
                if place is not None:
                    return place
        if self.hot_keys is not None and self.hot_keys.is_hot(key):
            topic, key_there = self.hot(key)
            return Place(topic, key_there, None if topic == self.topic else Why.HOT_KEY)
        return Place(self.topic, key, None)

    def hot(self, key: bytes) -> tuple[str, bytes | None]:
        """The topic and the key of an event whose key is hot."""
        router = self.router
        enforced = router.overflow is Mode.ENFORCE
        router.seen[Why.HOT_KEY, 0, not enforced] += 1
        if not enforced:
            return self.topic, key
        return router.topics.overflow, key if router.keeps_key else None

    def _by_rule(self, rule: Rule, key: bytes) -> Place | None:
        """Where the rule sends the event; nothing if it has no say."""
        router = self.router
        why = Why(f"rule_{rule.action}")
        if rule.action is Action.OVERFLOW and self.historical:
            return None
        router.seen[why, rule.rule_id, rule.dry_run] += 1
        if rule.dry_run:
            return None
        match rule.action:
            case Action.DROP:
                return Place(None, key, why)
            case Action.TOPIC:
                return Place(rule.topic, key, why)
            case Action.HISTORICAL:
                return Place(router.topics.historical, key, why)
            case Action.OVERFLOW:
                return Place(router.topics.overflow, key if router.keeps_key else None, why)
