"""`tidemark reconcile`: prove loaded batches again, and load again what ClickHouse has lost."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from assets.pipeline.audit import Finding, balance_of
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.repair import Repairs, mirror_again, repair
from assets.pipeline.staged_files import told_let_go
from orchestration import reconcile as reconciling
from orchestration.cli import EXIT_NOT_BALANCED
from orchestration.cli.batch import worker_of
from orchestration.cli.settings import settings_at_hand
from orchestration.cli.text import labelled
from orchestration.reconcile import Chosen, Reconciliation, remedy

_FINDINGS_SHOWN = 20


@click.command()
@click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="All of an arrival date.")
@click.option("--batch", "batch_ids", multiple=True, metavar="ID", help="This batch; repeatable.")
@click.option("--all", "all_", is_flag=True, help="All batches there are.")
@click.option("--rows", "by_rows", is_flag=True, help="Row by row, not only by sums.")
@click.option(
    "--repair", "mend", is_flag=True, help="Load again the batches whose rows are all gone."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def reconcile(
    day: datetime | None,
    batch_ids: tuple[str, ...],
    all_: bool,
    by_rows: bool,
    mend: bool,
    as_json: bool,
) -> None:
    """Hold loaded batches against ClickHouse: the newest and some older ones, or what you name.

    Exit code 3: a balance does not close.
    """
    if (day is not None) + bool(batch_ids) + all_ > 1:
        raise click.UsageError("give one of --date, --batch and --all")
    settings = settings_at_hand()
    worker = worker_of(settings, lambda line: click.echo(line, err=True))
    if day is not None:
        chosen = reconciling.of_date(worker, day.date())
    elif batch_ids:
        chosen = reconciling.of_names(worker, batch_ids)
    elif all_:
        chosen = reconciling.everything(worker)
    else:
        chosen = reconciling.newest_and_due(worker)
    found = reconciling.reconcile(worker, chosen, by_rows=by_rows)
    before: Reconciliation | None = None
    repairs: Repairs | None = None
    if mend and found.to_repair:
        before, repairs = found, repair(worker, found.to_repair)
        found = reconciling.again(worker, found)
    if mend:
        mirror_again(worker, found.chosen.batches)
    if as_json:
        print(json.dumps(document(found, settings.clickhouse_database, before, repairs)))
    else:
        print(text(found, settings.clickhouse_database, repairs))
    if found.findings or not_loaded_again(found, repairs):
        sys.exit(EXIT_NOT_BALANCED)


def not_loaded_again(found: Reconciliation, repairs: Repairs | None) -> list[str]:
    """What was given back and is not loaded yet, because another worker is at work."""
    proved = {batch.batch_id for batch in found.proved}
    return [id_ for id_ in repairs.given_back if id_ not in proved] if repairs else []


def document(
    found: Reconciliation,
    database: str,
    before: Reconciliation | None = None,
    repairs: Repairs | None = None,
) -> dict[str, Any]:
    """All of it as one JSON document."""
    balance = balance_of(found.proved)
    pending = not_loaded_again(found, repairs)
    return {
        "holds": not found.findings and not pending,
        "scope": found.chosen.scope,
        "by_rows": found.by_rows,
        "batches_proved": len(found.proved),
        "batches_let_go": len(found.let_go),
        "batches_not_loaded": len(found.chosen.batches) - len(found.proved) - len(found.let_go),
        "not_compared": [told_let_go(file) for file in found.not_compared],
        "offsets": balance.offsets,
        **vars(balance),
        "findings": [_finding(finding, found.chosen, database) for finding in found.findings],
        "repaired": [id_ for id_ in repairs.given_back if id_ not in pending] if repairs else [],
        "given_back": pending,
        "deleted": list(repairs.deleted) if repairs else [],
        "not_repaired": repairs.left if repairs else {},
        "findings_before_repair": [
            _finding(finding, before.chosen, database) for finding in before.findings
        ]
        if before
        else [],
    }


def _finding(finding: Finding, chosen: Chosen, database: str) -> dict[str, Any]:
    batch = _batch_of(finding, chosen)
    advice = remedy(finding, batch, database)
    return {
        "batch_id": finding.batch_id,
        "topic": batch.topic if batch else None,
        "arrival_date": batch.arrival_date.isoformat() if batch else None,
        "state": batch.state.value if batch else None,
        "table": finding.kind.value if finding.kind else None,
        "trouble": finding.trouble.value,
        "text": finding.text,
        "partitions": [asdict(difference) for difference in finding.partitions],
        "remedy": advice.sentence,
        "commands": list(advice.commands),
    }


def _rows(batches: list[Batch], kind: Kind) -> int:
    files = [batch.staged.file(kind) for batch in batches if batch.staged]
    return sum(file.rows for file in files if file)


def _batch_of(finding: Finding, chosen: Chosen) -> Batch | None:
    every = (*chosen.batches, *chosen.runs)
    return next((batch for batch in every if batch.batch_id == finding.batch_id), None)


def text(found: Reconciliation, database: str, repairs: Repairs | None = None) -> str:
    """The same for a person."""
    how = "by sums and row by row" if found.by_rows else "by sums"
    waiting = len(found.chosen.batches) - len(found.proved) - len(found.let_go)
    lines = [
        *labelled("scope", found.chosen.scope),
        f"proved    {len(found.proved):,} batches {how}",
        *labelled("balance", str(balance_of(found.proved))),
        *(
            f"staged    {_rows(found.proved, kind):,} rows for {database}.{kind}"
            for kind in (Kind.EVENTS, Kind.DEAD_LETTERS)
        ),
    ]
    if waiting:
        lines.append(f"waiting   {waiting:,} batches are not loaded: there is nothing to prove yet")
    if found.let_go:
        told = f"{len(found.let_go):,} batches, whose dates of events housekeeping has dropped"
        lines += labelled("let go", told)
    if gone := found.not_compared:
        told = f"{len(gone):,} files are proved by sums only: {told_let_go(gone[0])}"
        lines += labelled("let go", f"{told}{' …' if gone[1:] else ''}")
    for finding in found.findings[:_FINDINGS_SHOWN]:
        lines += _told(finding, _batch_of(finding, found.chosen), database)
    if len(found.findings) > _FINDINGS_SHOWN:
        more = len(found.findings) - _FINDINGS_SHOWN
        lines.append(f"          … and {more:,} more: --json has them all")
    pending = not_loaded_again(found, repairs)
    if repairs:
        for batch_id in repairs.given_back:
            done = "is given back" if batch_id in pending else "is loaded again and proved"
            lines.append(f"repaired  batch {batch_id} {done}")
        for batch_id in repairs.deleted:
            lines.append(f"repaired  rows of batch {batch_id}, which was given up, are deleted")
        for batch_id, why in repairs.left.items():
            lines += labelled("left", f"batch {batch_id}: {why}")
    wrong = len({finding.batch_id for finding in found.findings})
    if not wrong and not pending and not found.chosen.batches:
        lines.append("nothing   there is no batch, so nothing was proved")
    elif not wrong and not pending:
        lines.append("holds     every balance closes, and ClickHouse has what was staged")
    else:
        findings = len(found.findings)
        lines.append(f"DOES NOT HOLD: findings: {findings:,}, batches: {wrong + len(pending):,}")
    return "\n".join(lines)


def _told(finding: Finding, batch: Batch | None, database: str) -> list[str]:
    where = f" of {batch.topic}, {batch.arrival_date}" if batch else ""
    name = "" if finding.batch_id is None else f"batch {finding.batch_id or '(none)'}{where}: "
    # Partitions say the same and more; they have lines of their own.
    said = f"in {database}.{finding.kind}" if finding.partitions else finding.text
    lines = labelled("DIFFERS", f"{name}{finding.trouble}, {said}")
    for difference in finding.partitions:
        lines += labelled("", str(difference))
    advice = remedy(finding, batch, database)
    if advice.sentence:
        lines += labelled("  do", advice.sentence)
        lines += [f"            {command}" for command in advice.commands]  # whole, to be copied
    return lines
