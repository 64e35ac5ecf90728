"""`tidemark explain`: the whole way of one event, or of one request."""

from __future__ import annotations

import json
import sys
from datetime import datetime

import click

from orchestration.cli import EXIT_FAILED
from orchestration.cli.settings import settings_at_hand
from orchestration.explain.document import document
from orchestration.explain.explanation import explain as look_everywhere
from orchestration.explain.text import text
from orchestration.explain.wanted import wanted
from orchestration.ledger.connection import open_ledger


@click.command()
@click.argument("id")
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DATE",
    help="Look at what arrived on this day (UTC): all files of it, and Kafka within bounds.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def explain(id: str, day: datetime | None, as_json: bool) -> None:
    """Show what became of an event, by its uuid or by the X-Request-Id of an answer."""
    try:
        looked_for = wanted(id, None if day is None else day.date())
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    settings = settings_at_hand()
    explanation = look_everywhere(settings, open_ledger(settings.ledger), looked_for)
    print(json.dumps(document(explanation)) if as_json else text(explanation))
    if not explanation.records:
        sys.exit(EXIT_FAILED)
