"""Rules: what is given must match; nothing given is refused unless it is meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, update

from orchestration.ledger.access import read_access
from orchestration.ledger.errors import BadRule, UnknownProject, UnknownRule
from orchestration.ledger.projects import create_project
from orchestration.ledger.rules import Action, add_rule, enable_rule, list_rules, remove_rule
from orchestration.ledger.tables import rules as rules_table


def test_rules_are_kept_in_order_and_read_by_the_edge(ledger: Engine) -> None:
    """Everything that was given comes back, to the list and to the edge."""
    project_id = create_project(ledger, "shop").project_id
    rules = (
        add_rule(ledger, Action.DROP, project_id=project_id, distinct_id="bot", note="a bot"),
        add_rule(ledger, Action.TOPIC, topic="special-1", event="order placed", dry_run=True),
        add_rule(ledger, Action.OVERFLOW, distinct_id="ü'\n"),
        add_rule(ledger, Action.HISTORICAL, everything=True),
    )
    first, second = rules[:2]
    assert (first.action, first.project_id, first.distinct_id, first.event, first.note) == (
        Action.DROP,
        project_id,
        "bot",
        None,
        "a bot",
    )
    assert (second.topic, second.event, second.dry_run) == ("special-1", "order placed", True)
    assert list_rules(ledger) == read_access(ledger).rules == rules


def test_a_dry_run_ends_and_a_rule_goes(ledger: Engine) -> None:
    """Enabling ends the dry run of that rule alone; a removed rule is gone."""
    one = add_rule(ledger, Action.DROP, event="one", dry_run=True)
    other = add_rule(ledger, Action.DROP, event="other", dry_run=True)
    assert enable_rule(ledger, one.rule_id) == replace(one, dry_run=False)
    assert list_rules(ledger) == (replace(one, dry_run=False), other)
    assert remove_rule(ledger, one.rule_id) == replace(one, dry_run=False)
    assert list_rules(ledger) == (other,)
    for change in (enable_rule, remove_rule):
        with pytest.raises(UnknownRule, match=f"no rule has the id {one.rule_id}"):
            change(ledger, one.rule_id)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"action": Action.DROP}, "every event of every project"),
        ({"action": Action.DROP, "event": "e", "everything": True}, "--everything goes with no"),
        ({"action": Action.TOPIC, "event": "e"}, "needs the name of a topic"),
        ({"action": Action.DROP, "event": "e", "topic": "t"}, "takes no topic"),
        ({"action": Action.TOPIC, "event": "e", "topic": ""}, "cannot be a topic"),
        ({"action": Action.TOPIC, "event": "e", "topic": ".."}, "cannot be a topic"),
        ({"action": Action.TOPIC, "event": "e", "topic": "a b"}, "cannot be a topic"),
        ({"action": Action.TOPIC, "event": "e", "topic": "t" * 250}, "cannot be a topic"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(
    ledger: Engine, given: dict[str, Any], told: str
) -> None:
    """The refusal says what is wrong, and nothing is kept."""
    with pytest.raises(BadRule, match=told):
        add_rule(ledger, **given)
    assert list_rules(ledger) == ()


def test_a_rule_needs_a_project_that_exists(ledger: Engine) -> None:
    """A misspelt project makes no rule that never matches."""
    with pytest.raises(UnknownProject, match="no project has the id 7"):
        add_rule(ledger, Action.DROP, project_id=7)


def test_an_action_of_a_newer_version_is_passed_over(ledger: Engine) -> None:
    """While versions change, an older edge goes on reading: projects, and the rules it knows."""
    project = create_project(ledger, "shop")
    newer, known = (
        add_rule(ledger, Action.DROP, event="a"),
        add_rule(ledger, Action.DROP, event="b"),
    )
    with ledger.begin() as connection:
        connection.execute(
            update(rules_table)
            .where(rules_table.c.rule_id == newer.rule_id)
            .values(action="mirror")
        )
    access = read_access(ledger)
    assert (access.rules, access.tokens) == ((known,), {project.token: project.project_id})
