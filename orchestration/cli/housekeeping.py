"""`tidemark housekeeping`: let go now of what has served its time, or only say what would go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from orchestration.cli.batch import worker_of
from orchestration.cli.settings import settings_at_hand
from orchestration.cli.text import bytes_text, labelled
from orchestration.housekeeping.keep_house import Report, keep_house
from orchestration.instance import dagster_home, open_instance


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why other things stay.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def housekeeping(dry_run: bool, as_json: bool) -> None:
    """Let go of what has served its time (TIDEMARK_KEEP_…), as the daily job does.

    Ctrl-C is safe at any time: the next run goes on from where it stood.
    """
    settings = settings_at_hand()
    worker = worker_of(settings, lambda line: click.echo(line, err=True))
    home = Path(os.environ.get("DAGSTER_HOME") or dagster_home(settings.home))
    if not (home / "dagster.yaml").exists():
        click.echo(f"Dagster's runs are not looked at: there is no {home}/dagster.yaml", err=True)
        report = keep_house(worker, None, dry_run=dry_run)
    else:
        with open_instance(settings, home) as instance:
            report = keep_house(worker, instance, dry_run=dry_run)
    print(json.dumps(report.document()) if as_json else text(report))


def text(report: Report) -> str:
    """The report for a person."""
    lines = []
    for tally in report.tallies:
        size = f", {bytes_text(tally.bytes)}" if tally.bytes else ""
        goes = "would go" if report.dry_run else "let go"
        lines += labelled(goes, f"{tally.count:,} {tally.what}{size}")
        for why, count in tally.kept.items():
            lines += labelled("  kept", f"{count:,}, because {why}")
        if tally.cut_short:
            lines += labelled("  kept", "more, for which there was no time: the next run goes on")
    parts = report.parts
    lines += labelled(
        "parts",
        f"{parts.parts:,} at most ({parts.table} of {parts.partition or 'no date'}); inserts are "
        f"slowed down from {parts.limit:,}",
    )
    return "\n".join(lines)
