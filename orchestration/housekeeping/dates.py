"""Dates: a date's files of a kind go together, once ClickHouse is proved to hold all of it.

    a date, old enough ─▶ judged, proved ─▶ marked in the ledger ─▶ deleted ─▶ noted as deleted

Invariant: a file is deleted only when the ledger says that it is let go of; whoever reads such
files asks the ledger. A crash leaves marked files, which the next run deletes first.

Small dates are marked one by one and deleted some at a time: deleting rows of dead letters costs
ClickHouse as much as the table has parts, whatever it deletes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date

from assets.pipeline.batch import Kind
from assets.pipeline.date_anew import rebuild_lease
from assets.pipeline.errors import LeaseHeld
from assets.pipeline.failpoints import failpoint
from assets.pipeline.worker import Worker
from orchestration.housekeeping.deleting import FILES_AT_ONCE
from orchestration.housekeeping.judge import CHANGED, Judge
from orchestration.housekeeping.replaced import REBUILT
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.let_go import KeptFiles, dates_with_files, kept_files, let_go_of_date


def let_go_of_dates(
    worker: Worker,
    tally: Tally,
    keep_days: int,
    kinds: Sequence[Kind],
    *,
    count: Callable[[KeptFiles], int],
    delete: Callable[[], None],
    marked_point: str,
    dry_run: bool,
) -> Tally:
    """Let go of the files of dates that were over so many days ago; 0: of none.

    `delete` deletes what is marked, `count` says what is counted of the files of a date;
    `marked_point` is the failpoint between marking and deleting.
    """
    if not dry_run:
        delete()
    if not keep_days:
        return tally
    judge = Judge(worker, keep_days, dry_run=dry_run)
    marked = 0
    for day in dates_with_files(worker.ledger, judge.before, kinds, *worker.settings.topics):
        if not tally.has_time():
            break
        kept, why = _mark(worker, judge, day, kinds, dry_run=dry_run)
        if why:
            tally.kept[why] += count(kept)
        elif dry_run:
            tally.add(count(kept), kept.bytes)
        else:
            failpoint(marked_point)
            marked += kept.count
            if marked >= FILES_AT_ONCE:
                delete()
                marked = 0
    if marked:
        delete()
    return tally


def _mark(
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
