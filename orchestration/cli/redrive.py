"""`tidemark redrive`: try dead letters again, or see what would come of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from datetime import datetime
from typing import Any

import click

from assets.pipeline.batch import State
from assets.pipeline.reasons import Reason
from assets.pipeline.redrive import Redriven, Wanted, preview
from assets.pipeline.redrive import redrive as try_again
from assets.pipeline.waiting import give_up_redrive
from orchestration.cli import EXIT_FAILED
from orchestration.cli.arguments import PROJECT
from orchestration.cli.batch import worker_of
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.redrives import Outcome

_VERBS = {
    Outcome.EVENT: ("would become events", "became events"),
    Outcome.DUPLICATE: ("would be duplicates", "were duplicates"),
    Outcome.REJECTED: ("would be rejected again", "were rejected again"),
}


@click.command()
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=click.Choice([reason.value for reason in Reason]),
    help="Only those rejected for this reason; may be given several times.",
)
@click.option("--project", type=PROJECT, help="Only those of this project, by its id or a token.")
@click.option(
    "--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="Only those of this arrival date."
)
@click.option("--batch", "batch_id", help="Only those of this batch.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest first.")
@click.option("--all", "everything", is_flag=True, help="All dead letters there are.")
@click.option("--again", is_flag=True, help="Those as well that failed too often before.")
@click.option("--give-up", metavar="BATCH_ID", help="End a redrive that cannot go on.")
@click.option("--dry-run", is_flag=True, help="Only show what would come of it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def redrive(
    reasons: tuple[str, ...],
    project: str | None,
    day: datetime | None,
    batch_id: str | None,
    limit: int | None,
    everything: bool,
    again: bool,
    give_up: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Try dead letters again with the code and the projects of now.

    Without anything that chooses some, it is a dry run: say --all for all of them.
    """
    settings = settings_at_hand()
    worker = worker_of(settings, lambda line: click.echo(line, err=as_json))
    date = None if day is None else day.date()
    wanted = Wanted(reasons, project, date, batch_id, limit, again)
    if give_up is not None:
        if everything or dry_run or as_json or wanted != Wanted():
            raise click.UsageError("--give-up goes with nothing else")
        batch = give_up_redrive(worker, give_up)
        print(
            f"redrive {batch.batch_id} is {batch.state}: its {batch.letters:,} dead letters can be "
            "redriven again"
        )
        return
    only_look = dry_run or (wanted.says_nothing and not everything)
    done = preview(worker, wanted) if only_look else try_again(worker, wanted)
    if as_json:
        print(json.dumps(document(done)))
    else:
        for line in text(done):
            print(line)
        if only_look and done.letters and not dry_run:
            print(
                "nothing was done: choose some (--reason, --project, --date, --batch), or say --all"
            )
    if done.damaged:
        sys.exit(EXIT_FAILED)


def document(done: Redriven) -> dict[str, Any]:
    """What came of it, as one JSON document."""
    return {
        "dry_run": done.dry_run,
        "letters": done.letters,
        "events": done.count(Outcome.EVENT),
        "duplicates": done.count(Outcome.DUPLICATE),
        "rejected": done.count(Outcome.REJECTED),
        "reasons": [
            {"reason": reason, "outcome": outcome, "new_reason": new or None, "letters": count}
            for (reason, outcome, new), count in sorted(done.results.items())
        ],
        "left_out": [
            {"reason": reason, "why": why, "letters": count}
            for (reason, why), count in sorted(done.left_out.items())
        ],
        "damaged": list(done.damaged),
        "batches": [
            {
                "batch_id": batch.batch_id,
                "topic": batch.topic,
                "arrival_date": batch.arrival_date.isoformat(),
                "state": batch.state,
                "letters": batch.letters,
                "ok": batch.staged.balance.ok if batch.staged else None,
            }
            for batch in done.batches
        ],
    }


def text(done: Redriven) -> list[str]:
    """What came of it, for people: a line a reason, then what was left out and why."""
    lines = []
    total = f"{done.letters:,} dead letter{'' if done.letters == 1 else 's'}"
    if not done.letters:
        lines.append("no dead letter that matches can be tried")
    elif done.dry_run:
        lines.append(f"dry run: {total} would be tried again")
    else:
        lines.append(f"{total} tried again")
    for reason in sorted({reason for reason, _, _ in done.results}):
        outcomes: Counter[str] = Counter()
        for (of_reason, outcome, new), count in done.results.items():
            if of_reason == reason:
                verb = _VERBS[outcome][not done.dry_run]
                outcomes[f"{verb} ({new})" if new else verb] += count
        parts = ", ".join(f"{count:,} {verb}" for verb, count in outcomes.most_common())
        lines.append(f"  {reason}: {parts}")
    for (reason, why), count in sorted(done.left_out.items()):
        lines.append(f"  left out: {count:,} {reason} ({why})")
    lines += [f"  left out: {damage}" for damage in done.damaged]
    for batch in done.batches:
        if batch.state is State.COMMITTED and batch.staged is not None:
            rows = batch.staged.balance.ok
            lines.append(f"batch {batch.batch_id}: {rows:,} rows, proved")
        else:
            lines.append(f"batch {batch.batch_id}: {batch.state}, see `tidemark status`")
    return lines
