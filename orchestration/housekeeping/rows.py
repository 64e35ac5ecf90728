"""Rows: dates of `events` that have been there for as long as they are to be.

    a date, old enough ─▶ judged, proved ─▶ no rows of others, marked ─▶ the partition is dropped
                                               both under the topics' lease (swap.py)

Staged files stay for as long as their own setting says: a rebuild makes the date anew from them. A
crash leaves a date that is marked and still there, or the copy that it was moved to: the next run
drops it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from datetime import date

from assets.pipeline.clickhouse import named_errors
from assets.pipeline.date_anew import rebuild_lease
from assets.pipeline.errors import LeaseHeld
from assets.pipeline.swap import days_with_copies, drop_copies, rows_by_batch, take_away
from assets.pipeline.worker import Worker
from orchestration.housekeeping.judge import CHANGED, Judge
from orchestration.housekeeping.replaced import REBUILT
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.leases import Lease
from orchestration.ledger.let_go import Settled, are_rows_let_go, let_go_of_rows

BUSY = "workers were at work all the time"
STRANGERS = "it has rows of batches that this ledger does not know"

_DATES = """
SELECT toDate(partition), sum(rows), sum(bytes_on_disk)
FROM system.parts
WHERE active AND database = {database:String} AND table = 'events'
GROUP BY 1 ORDER BY 1
"""
_POLL_S = 1.0


def let_go_of_events(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Drop the dates of `events` that were over so many days ago; 0: none."""
    tally = Tally("rows of events")
    if not dry_run:
        _drop_leftovers(worker)
    if not keep_days:
        return tally
    judge = Judge(worker, keep_days, dry_run=dry_run)
    for day, rows, size in _dates(worker):
        if day >= judge.before or not tally.has_time():
            break
        if dry_run:
            judged = judge.judge(day)
            why = judged.why_kept or _strangers(worker, day, judged.batches)
        else:
            try:
                why = _drop(worker, judge, day, tally)
            except LeaseHeld:
                why = REBUILT
        if why:
            tally.kept[why] += rows
        else:
            tally.add(rows, size)
    return tally


def _drop_leftovers(worker: Worker) -> None:
    """What was moved away by a run that was killed before it had dropped it."""
    for day in days_with_copies(worker):
        if are_rows_let_go(worker.ledger, day, *worker.settings.topics):
            with suppress(LeaseHeld), rebuild_lease(worker, day):
                drop_copies(worker, day)


def _drop(worker: Worker, judge: Judge, day: date, tally: Tally) -> str:
    """Drop a date, unless something keeps it: says what."""
    with rebuild_lease(worker, day) as own, ExitStack() as stack:
        judged = judge.judge(day)
        if judged.why_kept:
            return judged.why_kept
        topics = _topics(worker, stack, tally)
        if topics is None:
            return BUSY
        if why := _strangers(worker, day, judged.batches):
            return why
        both = (own, topics)
        if not let_go_of_rows(worker.ledger, both, day, judged.batches, *worker.settings.topics):
            return CHANGED
        take_away(worker, topics, day)
    worker.say(f"{day} of events is dropped")
    return ""


def _topics(worker: Worker, stack: ExitStack, tally: Tally) -> Lease | None:
    """The lease without which nothing is loaded, as soon as it is free."""
    while True:
        try:
            return stack.enter_context(worker.lease())
        except LeaseHeld:
            if not tally.has_time():
                return None
            time.sleep(_POLL_S)


def _strangers(worker: Worker, day: date, batches: tuple[Settled, ...]) -> str:
    strange = rows_by_batch(worker, "events", day).keys() - {batch.batch_id for batch in batches}
    if not strange:
        return ""
    worker.say(f"{day} stays: {STRANGERS} ({', '.join(sorted(strange)[:3]) or '(none)'})")
    return STRANGERS


def _dates(worker: Worker) -> list[tuple[date, int, int]]:
    with named_errors("looking at events"):
        return [
            (day, int(rows), int(size))
            for day, rows, size in worker.clickhouse.query(
                _DATES, parameters={"database": worker.settings.clickhouse_database}
            ).result_rows
        ]
