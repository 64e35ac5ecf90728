"""`tidemark gaps`: what was lost before it was loaded; a person accepts or refuses each loss."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from assets.pipeline.batch import Batch
from assets.pipeline.resends import told
from assets.pipeline.waiting import accept_gap, refuse_gap, resends_of_lost
from orchestration.cli.arguments import WORDS
from orchestration.cli.batch import worker_of
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.batches import batches_named
from orchestration.ledger.gaps import UNREAD, Gap, all_gaps
from orchestration.times import exact_iso, utc_text

_WHY = click.option(
    "--why", type=WORDS, required=True, help="The reason, in words. It is kept for ever."
)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def gaps(ctx: click.Context, as_json: bool) -> None:
    """List every loss that was ever found; `accept` or `refuse` one."""
    if ctx.invoked_subcommand is not None:
        return
    settings = settings_at_hand()
    worker = worker_of(settings, lambda line: click.echo(line, err=True))
    found = all_gaps(worker.ledger, *settings.topics)
    resends = {gap.gap_id: resends_of_lost(worker, gap) for gap in found if not gap.decision}
    ids = sorted({gap.batch_id for gap in found})
    redrives = {
        each.batch_id: each for each in batches_named(worker.ledger, ids) if each.is_redrive
    }
    if as_json:
        print(json.dumps([_document(gap, resends.get(gap.gap_id)) for gap in found]))
        return
    if not found:
        print("nothing was ever lost")
    for gap in found:
        redrive = redrives.get(gap.batch_id)
        print(f"gap {gap.gap_id}  batch {gap.batch_id}: {_lost_of(gap, redrive)}")
        print(f"       found {utc_text(gap.found_at)}: {gap.note}")
        if gap.decided_at is None:
            if resends[gap.gap_id]:
                print(f"       {told(resends[gap.gap_id])}")
            decide = f"`tidemark gaps accept|refuse {gap.gap_id} --why …`"
            if redrive is not None:  # its records are dead letters still
                decide = f"`tidemark redrive --give-up {gap.batch_id}`"
            print(f"       WAITS: {decide}, or `tidemark retry {gap.batch_id}`")
        else:
            why = f": {gap.why}" if gap.why else ""
            print(f"       {gap.decision} by {gap.decided_by}, {utc_text(gap.decided_at)}{why}")


@gaps.command()
@click.argument("gap_id", type=int)
@_WHY
def accept(gap_id: int, why: str) -> None:
    """Count what is lost as lost, and let the rest of the batch be loaded."""
    gap = accept_gap(worker_of(settings_at_hand(), click.echo), gap_id, why)
    print(
        f"gap {gap_id} is accepted: {gap.records:,} count as lost; the next micro-batch carries "
        f"batch {gap.batch_id} on"
    )


@gaps.command()
@click.argument("gap_id", type=int)
@_WHY
def refuse(gap_id: int, why: str) -> None:
    """Do not put up with it: the batch is failed, and nothing of it is loaded."""
    gap = refuse_gap(worker_of(settings_at_hand(), click.echo), gap_id, why)
    print(
        f"gap {gap_id} is refused: batch {gap.batch_id} is failed. When its records are back, "
        f"`tidemark retry {gap.batch_id}`"
    )


def _lost_of(gap: Gap, redrive: Batch | None) -> str:
    if redrive is not None:
        return f"a redrive of {redrive.letters:,} dead letters"
    what = f"{gap.records:,} offsets" if gap.cause in UNREAD else f"{gap.records:,} rows"
    return f"{what}, {gap.lost or 'not known which'}"


def _document(gap: Gap, resends: Mapping[str, int] | None) -> dict[str, object]:
    times = {name: exact_iso(getattr(gap, name)) for name in ("found_at", "decided_at")}
    return {**vars(gap), **times, "resends": resends}
