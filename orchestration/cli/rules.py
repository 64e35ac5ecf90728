"""`tidemark rules`: events that are to be dropped, or to go to another topic."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]
from sqlalchemy import Engine

from orchestration.cli.arguments import PROJECT
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import find_project
from orchestration.ledger.rules import (
    Action,
    Rule,
    add_rule,
    enable_rule,
    list_rules,
    remove_rule,
)
from orchestration.settings import Settings

KAFKA_PATIENCE_SECONDS = 5.0

RULE_ID = click.IntRange(1, 2**31 - 1)

as_one_document = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def rules() -> None:
    """Add, list, remove and enable rules for events: drop them, or send them elsewhere."""


@rules.command()
@click.option(
    "--action",
    type=click.Choice([action.value for action in Action]),
    required=True,
    help="What is done: drop, or to the overflow, the historical or a topic of your own.",
)
@click.option("--topic", help="The topic of Kafka, with --action topic.")
@click.option(
    "--project", "--token", "project", type=PROJECT, help="Events of this project (id or token)."
)
@click.option("--distinct-id", help="Events of this distinct_id.")
@click.option("--event", help="Events of this name.")
@click.option("--everything", is_flag=True, help="Every event of every project.")
@click.option("--dry-run", is_flag=True, help="Only count what would be done.")
@click.option("--note", default="", help="Why, for those who come later.")
@as_one_document
def add(
    action: str,
    topic: str | None,
    project: str | None,
    distinct_id: str | None,
    event: str | None,
    everything: bool,
    dry_run: bool,
    note: str,
    as_json: bool,
) -> None:
    """Add a rule for events that have everything that is given."""
    settings = settings_at_hand()
    ledger = open_ledger(settings.ledger)
    rule = add_rule(
        ledger,
        Action(action),
        topic=topic,
        project_id=None if project is None else find_project(ledger, project).project_id,
        distinct_id=distinct_id,
        event=event,
        dry_run=dry_run,
        note=note,
        everything=everything,
    )
    if rule.topic is not None:
        _warn_of_missing(settings, rule.topic)
    _print(rule, as_json)


@rules.command("list")
@as_one_document
def list_(as_json: bool) -> None:
    """Print all rules."""
    found = list_rules(_ledger())
    if as_json:
        print(json.dumps([asdict(rule) for rule in found]))
        return
    if not found:
        print("no rules: every event goes the usual way")
    for rule in found:
        print(_described(rule))


@rules.command()
@click.argument("rule_id", type=RULE_ID)
@as_one_document
def remove(rule_id: int, as_json: bool) -> None:
    """Remove a rule."""
    rule = remove_rule(_ledger(), rule_id)
    if as_json:
        print(json.dumps(asdict(rule)))
    else:
        print(f"removed: {_described(rule)}")


@rules.command()
@click.argument("rule_id", type=RULE_ID)
@as_one_document
def enable(rule_id: int, as_json: bool) -> None:
    """End the dry run of a rule: from now on it is carried out."""
    settings = settings_at_hand()
    rule = enable_rule(open_ledger(settings.ledger), rule_id)
    if rule.topic is not None:
        _warn_of_missing(settings, rule.topic)
    _print(rule, as_json)


def _ledger() -> Engine:
    return open_ledger(settings_at_hand().ledger)


def _print(rule: Rule, as_json: bool) -> None:
    print(json.dumps(asdict(rule)) if as_json else _described(rule))


def _described(rule: Rule) -> str:
    """The rule in words."""
    what = {
        Action.DROP: "drop",
        Action.OVERFLOW: "to the overflow topic",
        Action.HISTORICAL: "to the historical topic",
        Action.TOPIC: f"to the topic {rule.topic}",
    }[rule.action]
    given = [
        f"{name} {value!r}" if isinstance(value, str) else f"{name} {value}"
        for name, value in (
            ("project", rule.project_id),
            ("distinct_id", rule.distinct_id),
            ("event", rule.event),
        )
        if value is not None
    ]
    note = f"  # {rule.note}" if rule.note else ""
    state = "dry run" if rule.dry_run else "enabled"
    return f"{rule.rule_id:>6}  {state:7}  {what}: {', '.join(given) or 'every event'}{note}"


def _warn_of_missing(settings: Settings, topic: str) -> None:
    """Tell on stderr when Kafka does not have the topic, or cannot be asked."""
    # Asking for all topics creates none, which asking for one may do.
    admin = AdminClient({**settings.kafka_client, "log_level": "0"})
    try:
        known = admin.list_topics(timeout=KAFKA_PATIENCE_SECONDS).topics
    except KafkaException as error:
        click.echo(
            f"warning: Kafka at {settings.bootstrap_servers} did not say whether it has the topic "
            f"{topic} ({error.args[0].str()})",
            err=True,
        )
        return
    if topic not in known:
        click.echo(
            f"warning: Kafka has no topic {topic}: create it, or requests with such events are "
            "told 503",
            err=True,
        )
