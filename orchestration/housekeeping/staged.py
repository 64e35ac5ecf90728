"""Staged files: those of a date go together, once ClickHouse is proved to hold all of it.

    a date, old enough ─▶ judged, proved ─▶ marked in the ledger ─▶ deleted ─▶ noted as deleted

Invariant: a file is deleted only when the ledger says that it is let go of; whoever reads staged
files asks the ledger. A crash leaves marked files, which the next run deletes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from assets.pipeline.batch import Kind
from assets.pipeline.errors import LeaseHeld
from assets.pipeline.failpoints import failpoint
from assets.pipeline.rebuild import rebuild_lease
from assets.pipeline.worker import Worker
from orchestration.housekeeping.deleting import delete_marked
from orchestration.housekeeping.judge import CHANGED, Judge
from orchestration.housekeeping.replaced import REBUILT
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.let_go import (
    KeptFiles,
    dates_with_files,
    kept_files,
    let_go_of_date,
    marked_files,
    note_deleted,
)

STAGED = (Kind.EVENTS, Kind.DUPLICATES)
"""What goes by TIDEMARK_KEEP_STAGED_DAYS; dead letters have a setting of their own."""


def let_go_of_staged(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Let go of the staged files of dates that were over so many days ago; 0: of none."""
    tally = Tally("staged files")
    if not dry_run:
        _delete(worker, tally)
    if keep_days:
        judge = Judge(worker, keep_days)
        for day in dates_with_files(worker.ledger, judge.before, STAGED, *worker.settings.topics):
            if not tally.has_time():
                break
            kept, why = mark(worker, judge, day, STAGED, dry_run=dry_run)
            if why:
                tally.kept[why] += kept.count
            elif dry_run:
                tally.add(kept.count, kept.bytes)
            else:
                failpoint("let-go-marked")
                _delete(worker, tally)
    return tally


def mark(
    worker: Worker, judge: Judge, day: date, kinds: Sequence[Kind], *, dry_run: bool
) -> tuple[KeptFiles, str]:
    """Let go of a date's files of these kinds, in the ledger; what they are, or why they stay."""
    ledger, topics = worker.ledger, worker.settings.topics
    kept = kept_files(ledger, day, kinds, *topics)
    if dry_run:
        return kept, judge.judge(day).why_kept
    try:
        with rebuild_lease(worker, day) as lease:
            judged = judge.judge(day)
            if judged.why_kept:
                return kept, judged.why_kept
            if not let_go_of_date(ledger, lease, day, kinds, judged.batches, *topics):
                return kept, CHANGED
    except LeaseHeld:
        return kept, REBUILT
    worker.say(
        f"{day}: {kept.count:,} files of {' and '.join(kinds)} with {kept.rows:,} rows are let go"
    )
    return kept, ""


def _delete(worker: Worker, tally: Tally) -> None:
    ledger, topics = worker.ledger, worker.settings.topics
    delete_marked(
        worker,
        tally,
        lambda limit: marked_files(ledger, limit, STAGED, *topics),
        lambda gone: note_deleted(ledger, gone),
        lambda file: (1, file.bytes),
        "let-go-deleted",
    )
