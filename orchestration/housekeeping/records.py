"""Records: rows of the ledger, of dates of which nothing is left in the lake.

    the oldest date ─▶ no file left, judged, proved ─▶ its batches are forgotten ─▶ the next date

It stops at the first date of a topic that has to stay: see orchestration/ledger/forget.py. A date
of imports alone holds up no other. Where rows of `events` are to go, too, they go first: of a batch
that is forgotten nobody could tell whose they are.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from assets.pipeline.date_anew import rebuild_lease
from assets.pipeline.errors import LeaseHeld
from assets.pipeline.failpoints import failpoint
from assets.pipeline.shadow import PREVIOUS
from assets.pipeline.swap import drop_copies, rows_by_batch
from assets.pipeline.worker import Worker
from orchestration.housekeeping.judge import Judge, midnight_us
from orchestration.housekeeping.replaced import REBUILT, dates_in
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.forget import (
    dates_on_record,
    forget_alarms,
    forget_rebuilds,
    forget_some,
    has_files,
)

FILES_KEPT = "files of it are kept"
ROWS_KEPT = "its rows are to be let go first"
BEHIND = "an older date stays"


def forget_batches(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Forget the batches of dates that were over so many days ago; 0: of none."""
    tally = Tally("batches of the ledger")
    if not keep_days:
        return tally
    behind = ""
    judge = Judge(worker, keep_days, dry_run=dry_run)
    on_record = dates_on_record(worker.ledger, judge.before, *worker.settings.topics)
    for day, count, is_imported in on_record:
        if not tally.has_time():
            break
        why = behind or _forget_date(worker, judge, day, count, tally, dry_run)
        if why:
            tally.kept[why] += count
            if not is_imported:
                behind = behind or f"{BEHIND}, {day}"
    return tally


def forget_what_is_over(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Forget alarms that are over, and rebuilds that ended, so many days ago; 0: none."""
    tally = Tally("alarms and rebuilds that are over")
    if not keep_days:
        return tally
    before = datetime.now(UTC).date() - timedelta(days=keep_days)
    before_us = midnight_us(before)
    topic, kept = worker.settings.topic, dates_in(worker, PREVIOUS)
    forgetting: list[Callable[[], int]] = [
        lambda: forget_alarms(worker.ledger, before_us, dry_run=dry_run),
        lambda: forget_rebuilds(worker.ledger, topic, before_us, kept, dry_run=dry_run),
    ]
    for forget in forgetting:
        while tally.has_time() and (count := forget()):
            tally.add(count)
            if dry_run:
                break
    return tally


def _forget_date(
    worker: Worker, judge: Judge, day: date, count: int, tally: Tally, dry_run: bool
) -> str:
    """Forget a date; why it has to stay, empty when it need not."""
    if dry_run:
        why = _why_kept(worker, judge, day)
        if not why:
            tally.add(count)
        return why
    ledger, topics = worker.ledger, worker.settings.topics
    try:
        with rebuild_lease(worker, day) as lease:
            if why := _why_kept(worker, judge, day):
                return why
            drop_copies(worker, day)
            while tally.has_time():
                some = forget_some(ledger, lease, day, *topics)
                if not some:
                    worker.say(
                        f"{day}: the ledger has forgotten its batches; ClickHouse has copies"
                    )
                    break
                failpoint("rows-forgotten")
                tally.add(some)
    except LeaseHeld:
        return REBUILT
    return ""


def _why_kept(worker: Worker, judge: Judge, day: date) -> str:
    if has_files(worker.ledger, day, *worker.settings.topics):
        return FILES_KEPT
    if why := judge.judge(day).why_kept:
        return why
    if worker.settings.keep_events_days and rows_by_batch(worker, "events", day):
        return ROWS_KEPT
    return ""
