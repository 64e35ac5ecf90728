"""Dead letters: files and rows of a date go together, redriven or not.

    a date, old enough ─▶ judged, proved ─▶ marked ─▶ rows deleted ─▶ files deleted ─▶ noted

Rows go by the names of their batches, so that nobody else's do, and what comes later stays. A crash
leaves marked files: until they are noted as deleted the next run deletes rows and files again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from itertools import groupby

from assets.pipeline.batch import Kind
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.failpoints import failpoint
from assets.pipeline.worker import Worker
from orchestration.housekeeping.deleting import delete_marked
from orchestration.housekeeping.judge import Judge
from orchestration.housekeeping.staged import mark
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.let_go import (
    MarkedFile,
    dates_with_files,
    marked_files,
    note_deleted,
)

LETTERS = (Kind.DEAD_LETTERS,)


def let_go_of_letters(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Let go of the dead letters of dates that were over so many days ago; 0: of none."""
    tally = Tally("dead letters")
    if not dry_run:
        _delete(worker, tally)
    if keep_days:
        judge = Judge(worker, keep_days)
        for day in dates_with_files(worker.ledger, judge.before, LETTERS, *worker.settings.topics):
            if not tally.has_time():
                break
            kept, why = mark(worker, judge, day, LETTERS, dry_run=dry_run)
            if why:
                tally.kept[why] += kept.rows
            elif dry_run:
                tally.add(kept.rows, kept.bytes)
            else:
                failpoint("letters-marked")
                _delete(worker, tally)
    return tally


def _delete(worker: Worker, tally: Tally) -> None:
    ledger, topics = worker.ledger, worker.settings.topics

    def delete_their_rows(files: Sequence[MarkedFile]) -> None:
        for day, of_day in groupby(files, key=lambda file: file.arrival_date):
            _delete_rows(worker, day, [file.batch_id for file in of_day])

    delete_marked(
        worker,
        tally,
        lambda limit: marked_files(ledger, limit, LETTERS, *topics),
        lambda gone: note_deleted(ledger, gone),
        lambda file: (file.rows, file.bytes),
        "letters-deleted",
        before=delete_their_rows,
    )


def _delete_rows(worker: Worker, day: date, batch_ids: Sequence[str]) -> None:
    with named_errors(f"deleting dead letters of {day}"):
        worker.clickhouse.command(
            "ALTER TABLE {database:Identifier}.dead_letters DELETE "
            "WHERE arrival_date = {day:Date} AND _batch_id IN {batch_ids:Array(String)} "
            "SETTINGS mutations_sync = 2",
            parameters={
                "database": worker.settings.clickhouse_database,
                "day": day,
                "batch_ids": list(batch_ids),
            },
        )
