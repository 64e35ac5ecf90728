"""`tidemark import`: exported files into `events`, what was imported, and what is thrown away."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from assets.pipeline.discard import Discarded, discard_import
from assets.pipeline.imports import Imported, import_file, standing
from assets.pipeline.waiting import give_up_import
from orchestration.cli.arguments import PROJECT
from orchestration.cli.batch import worker_of
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.imports import all_imports
from orchestration.times import utc_text


@click.command("import")
@click.argument("files", nargs=-1)
@click.option("--project", type=PROJECT, help="Into this project, by its id or a token.")
@click.option(
    "--date",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The arrival date of what is imported; without it: today, in UTC.",
)
@click.option("--list", "only_list", is_flag=True, help="Only list every import there was.")
@click.option(
    "--give-up", metavar="NAME", help="The file of this import is gone: let what waits be a gap."
)
@click.option(
    "--discard",
    metavar="NAME",
    help="It was the wrong file: throw this import away, of which nothing is loaded.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def import_(
    files: tuple[str, ...],
    project: str | None,
    day: datetime | None,
    only_list: bool,
    give_up: str | None,
    discard: str | None,
    as_json: bool,
) -> None:
    """Import FILES, PostHog's exports as JSON lines or Parquet, into a project.

    Each is a path or a URI (s3://…, gs://…). Micro-batches go on meanwhile. Ctrl-C is safe at any
    time: said again, it goes on from where it stood, and of what is imported it imports nothing.
    """
    settings = settings_at_hand()
    worker = worker_of(settings, lambda line: click.echo(line, err=as_json))
    for option, name in (("--give-up", give_up), ("--discard", discard)):
        others = (files, project, day, only_list, as_json, give_up, discard)
        if name is not None and sum(map(bool, others)) > 1:
            raise click.UsageError(f"{option} goes with nothing else")
    if discard is not None:
        print(discarded_text(discard_import(worker, discard)))
        return
    if give_up is not None:
        for gap in give_up_import(worker, give_up):
            print(
                f"gap {gap.gap_id}, {gap.records:,} rows: `tidemark gaps accept|refuse "
                f"{gap.gap_id} --why …`; if the file is back, `tidemark retry {gap.batch_id}`"
            )
        return
    if only_list:
        if files or project or day:
            raise click.UsageError("--list goes with nothing but --json")
        done = [standing(worker, one) for one in all_imports(worker.ledger, settings.topic)]
        if not done and not as_json:
            print("no file was ever imported")
    else:
        if not files:
            raise click.UsageError("give FILES, or --list")
        if project is None:
            raise click.UsageError("--project is needed: the project of an export is not ours")
        date = None if day is None else day.date()
        done = []
        for file in files:
            done.append(import_file(worker, file, project, date))
            if not as_json:
                print(text(done[-1]))
    if as_json:
        print(json.dumps([document(each) for each in done]))
    elif only_list:
        for each in done:
            print(text(each))


def document(done: Imported) -> dict[str, Any]:
    """How an import stands, as one JSON document."""
    one = done.one
    return {
        "import_id": one.import_id,
        "name": one.name,
        "uri": one.uri,
        "sha256": one.sha256,
        "form": one.form,
        "project_id": one.project_id,
        "arrival_date": one.arrival_date.isoformat(),
        "rows": one.rows,
        "planned": done.rows,
        "done": done.is_done,
        "nothing_to_do": done.is_old,
        "discarded": one.discarded_at is not None,
        "batches": len(done.batches),
        **vars(done.balance),
    }


def text(done: Imported) -> str:
    """The same for people."""
    one = done.one
    stands = f"{done.rows:,} of {one.rows:,} rows planned, not all is loaded"
    if one.discarded_at is not None:
        stands = f"discarded by {one.discarded_by}, {utc_text(one.discarded_at)}"
    elif not one.rows:
        stands = "the file is empty, nothing to do"
    elif done.is_old:
        stands = "imported before, nothing to do"
    elif done.is_done:
        stands = "imported"
    return (
        f"import {one.import_id}, {one.uri}: {stands}; {len(done.batches):,} batches of "
        f"{one.arrival_date} as {one.name}; {done.balance}"
    )


def discarded_text(done: Discarded) -> str:
    """What was thrown away, for people."""
    one = done.one
    if done.is_old:
        assert one.discarded_at is not None
        when = f"{utc_text(one.discarded_at)}, by {one.discarded_by}"
        return f"import {one.import_id}, {one.uri}: was discarded {when}; what was left is deleted"
    size = sum(file.bytes for file in done.files)
    many = "batch" if len(done.batches) == 1 else "batches"
    return (
        f"import {one.import_id}, {one.uri}: discarded; {done.rows:,} of {one.rows:,} rows were "
        f"planned, in {len(done.batches):,} {many}; {len(done.files):,} staged files "
        f"({size:,} bytes) are deleted. Nothing of it was loaded; imported again, it is another "
        "import"
    )
