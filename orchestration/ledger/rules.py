"""Rules: what the capture API does with some events instead of the usual.

A rule matches an event that has everything the rule gives (project, distinct_id, event name); what
it does not give, any event has. A dry run only counts what would have been done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.engine import Row

from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.errors import BadRule, UnknownProject, UnknownRule
from orchestration.ledger.tables import projects, rules

_TOPIC_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]{1,249}")


class Action(StrEnum):
    """What is done with an event."""

    DROP = "drop"  # acknowledged and not kept
    OVERFLOW = "overflow"  # to <topic>_overflow
    HISTORICAL = "historical"  # to <topic>_historical
    TOPIC = "topic"  # to another topic of Kafka, which the rule names


@dataclass(frozen=True)
class Rule:
    """One rule. `topic` is set when the action is TOPIC."""

    rule_id: int
    action: Action
    topic: str | None
    project_id: int | None
    distinct_id: str | None
    event: str | None
    dry_run: bool
    note: str
    created_at: int


def add_rule(
    ledger: Engine,
    action: Action,
    *,
    topic: str | None = None,
    project_id: int | None = None,
    distinct_id: str | None = None,
    event: str | None = None,
    dry_run: bool = False,
    note: str = "",
    everything: bool = False,
) -> Rule:
    """Add a rule. Raises BadRule or UnknownProject.

    One that gives nothing would match every event of every project, and is refused unless
    `everything` says that this is meant.
    """
    if action is Action.TOPIC and topic is None:
        raise BadRule("the action topic needs the name of a topic: give --topic")
    if action is not Action.TOPIC and topic is not None:
        raise BadRule(
            f"the action {action} takes no topic: leave --topic out, or redirect with "
            "--action topic"
        )
    if topic is not None and not _TOPIC_NAME.fullmatch(topic):
        raise BadRule(
            f"{topic!r} cannot be a topic of Kafka: letters, digits, '.', '_' and '-', "
            "249 of them at most"
        )
    nothing_given = project_id is None and distinct_id is None and event is None
    if nothing_given and not everything:
        raise BadRule(
            "the rule would match every event of every project: give --project, --distinct-id or "
            "--event, or say --everything if that is meant"
        )
    if everything and not nothing_given:
        raise BadRule("--everything goes with no --project, --distinct-id and --event")
    with ledger.begin() as connection:
        if project_id is not None and not connection.scalar(
            select(projects.c.project_id).where(projects.c.project_id == project_id)
        ):
            raise UnknownProject(
                f"no project has the id {project_id}: see `tidemark projects list`"
            )
        row = connection.execute(
            insert(rules)
            .values(
                action=action.value,
                topic=topic,
                project_id=project_id,
                distinct_id=distinct_id,
                event=event,
                dry_run=dry_run,
                note=note,
                created_at=now_us(),
            )
            .returning(*rules.c)
        ).one()
    return _rule(row)


def list_rules(ledger: Engine) -> tuple[Rule, ...]:
    """All rules in order of creation."""
    with reading(ledger) as connection:
        return rules_in(connection)


def rules_in(connection: Connection) -> tuple[Rule, ...]:
    """`list_rules` inside a transaction.

    Actions that only a newer version knows are passed over: this one goes on without them.
    """
    known = rules.c.action.in_([action.value for action in Action])
    found = connection.execute(select(rules).where(known).order_by(rules.c.rule_id))
    return tuple(_rule(row) for row in found)


def remove_rule(ledger: Engine, rule_id: int) -> Rule:
    """Remove the rule. Raises UnknownRule."""
    with ledger.begin() as connection:
        row = connection.execute(
            delete(rules).where(rules.c.rule_id == rule_id).returning(*rules.c)
        ).one_or_none()
    if row is None:
        raise _unknown(rule_id)
    return _rule(row)


def enable_rule(ledger: Engine, rule_id: int) -> Rule:
    """End the rule's dry run. Raises UnknownRule."""
    with ledger.begin() as connection:
        row = connection.execute(
            update(rules)
            .where(rules.c.rule_id == rule_id)
            .values(dry_run=False)
            .returning(*rules.c)
        ).one_or_none()
    if row is None:
        raise _unknown(rule_id)
    return _rule(row)


def _rule(row: Row[Any]) -> Rule:
    values = dict(row._mapping)
    return Rule(action=Action(values.pop("action")), **values)


def _unknown(rule_id: int) -> UnknownRule:
    return UnknownRule(f"no rule has the id {rule_id}: see `tidemark rules list`")
