"""`tidemark backfill`: dates of `events` made anew, with old files or new; listed, brought back."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta

import click

from assets.pipeline.errors import BatchError
from assets.pipeline.rebuild import back as bring_back
from assets.pipeline.rebuild import cancel as give_up
from assets.pipeline.rebuild import rebuild as make_anew
from assets.pipeline.rebuild_preview import Preview, preview_text
from assets.pipeline.rebuild_preview import preview as look
from assets.pipeline.remaking import Asked
from orchestration.cli.batch import worker_of
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.rebuilds import Rebuild, Way, all_rebuilds
from orchestration.times import iso, utc_text

_DAY = click.DateTime(["%Y-%m-%d"])
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def backfill() -> None:
    """Make dates of `events` anew from the lake, while micro-batches go on."""


@backfill.command()
@click.argument("first", type=_DAY, metavar="FIRST")
@click.argument("last", type=_DAY, metavar="[LAST]", required=False)
@click.option("--preview", is_flag=True, help="Only say what each date would become.")
@click.option(
    "--drop-strangers",
    is_flag=True,
    help="Also when rows of batches that this ledger has not loaded would be taken away.",
)
def rebuild(first: datetime, last: datetime | None, preview: bool, drop_strangers: bool) -> None:
    """Rebuild the arrival dates FIRST to LAST (FIRST alone without it) from their staged files.

    Each date is filled beside the table, proved and swapped in. Ctrl-C is safe at any time: said
    again, it goes on from where it stood.
    """
    worker = worker_of(settings_at_hand(), click.echo)
    for day in _days(first, last):
        if preview:
            _tell(look(worker, day))
        else:
            make_anew(worker, day, asked=Asked(drop_strangers))


@backfill.command("re-enrich")
@click.argument("first", type=_DAY, metavar="FIRST")
@click.argument("last", type=_DAY, metavar="[LAST]", required=False)
@click.option("--preview", is_flag=True, help="Only say what would change, column by column.")
@click.option(
    "--drop-strangers",
    is_flag=True,
    help="Also when rows of batches that this ledger has not loaded would be taken away.",
)
def re_enrich(first: datetime, last: datetime | None, preview: bool, drop_strangers: bool) -> None:
    """Make the staged files of FIRST to LAST again with today's code, and rebuild from them.

    Kafka is not needed: a staged row keeps what it was made of. A date of which nothing would
    change is left alone. Ctrl-C is safe at any time: said again, it goes on from where it stood.
    """
    worker = worker_of(settings_at_hand(), click.echo)
    for day in _days(first, last):
        if preview:
            _tell(look(worker, day, Way.REENRICH))
        else:
            make_anew(worker, day, Way.REENRICH, Asked(drop_strangers))


@backfill.command()
@click.argument("first", type=_DAY, metavar="FIRST")
@click.argument("last", type=_DAY, metavar="[LAST]", required=False)
@click.option("--preview", is_flag=True, help="Only say what is lost, and what of it has expired.")
@click.option("--all", "all_files", is_flag=True, help="Also files that are whole.")
@click.option(
    "--drop-strangers",
    is_flag=True,
    help="Also when rows of batches that this ledger has not loaded would be taken away.",
)
def replay(
    first: datetime, last: datetime | None, preview: bool, all_files: bool, drop_strangers: bool
) -> None:
    """Read the records of FIRST to LAST again from Kafka, where the lake has lost their files.

    The dates are rebuilt from the new files. A batch whose records have expired, or would come out
    otherwise, keeps its rows, and is named; then the exit code is 1.
    """
    worker = worker_of(settings_at_hand(), click.echo)
    left: dict[str, str] = {}
    for day in _days(first, last):
        if preview:
            _tell(look(worker, day, Way.REPLAY, all_files=all_files))
        else:
            make_anew(worker, day, Way.REPLAY, Asked(drop_strangers, all_files, left))
    if left:
        raise BatchError(
            f"{len(left):,} batches are left as they are, all else is done: "
            + "; ".join(left.values())
            + ". Bring their files back from a copy of the lake, if there is one"
        )


@backfill.command()
@click.argument("day", type=_DAY, metavar="DAY")
def back(day: datetime) -> None:
    """Bring back what the last rebuild of DAY has replaced; what was loaded since stays."""
    bring_back(worker_of(settings_at_hand(), click.echo), day.date())
    print(f"{day.date()}: as it was before it was rebuilt, and with what was loaded since")


@backfill.command()
@click.argument("day", type=_DAY, metavar="DAY")
def cancel(day: datetime) -> None:
    """Give up a rebuild of DAY that is not swapped in yet; `events` was never touched."""
    give_up(worker_of(settings_at_hand(), click.echo), day.date())
    print(f"{day.date()}: cancelled, the table is as it was")


@backfill.command("list")
@_JSON
def list_(as_json: bool) -> None:
    """List every rebuild there was, the newest first."""
    settings = settings_at_hand()
    found = all_rebuilds(open_ledger(settings.ledger), settings.topic)
    if as_json:
        print(json.dumps([_document(each) for each in found]))
        return
    if not found:
        print("no date was ever rebuilt")
    for each in found:
        held = "" if each.rows is None else f", {each.batches:,} batches, {each.rows:,} rows"
        print(
            f"{each.arrival_date}  {each.way.value:<9}  {each.state.value:<9}  since "
            f"{utc_text(each.moved_at)}, begun {utc_text(each.begun_at)} by run "
            f"{each.run_id[:8]}{held}"
        )


def _days(first: datetime, last: datetime | None) -> list[date]:
    days = ((last or first) - first).days
    if days < 0:
        raise click.UsageError("the last date is before the first")
    return [first.date() + timedelta(days=at) for at in range(days + 1)]


def _tell(seen: Preview) -> None:
    for line in preview_text(seen):
        print(line)


def _document(each: Rebuild) -> dict[str, object]:
    return {
        "date": each.arrival_date.isoformat(),
        "way": each.way.value,
        "generation": each.generation,
        "state": each.state.value,
        "run_id": each.run_id,
        "begun_at": iso(each.begun_at),
        "moved_at": iso(each.moved_at),
        "batches": each.batches,
        "rows": each.rows,
    }
