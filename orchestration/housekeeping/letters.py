"""Dead letters: files and rows of a date go together, redriven or not.

    a date, old enough ─▶ judged, proved ─▶ marked ─▶ rows deleted ─▶ files deleted ─▶ noted

Rows go by the names of their batches, so that nobody else's do, and what comes later stays. A crash
leaves marked files: until they are noted as deleted the next run deletes rows and files again.
"""

from __future__ import annotations

from collections.abc import Sequence

from assets.pipeline.batch import Kind
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.worker import Worker
from orchestration.housekeeping.dates import let_go_of_dates
from orchestration.housekeeping.deleting import delete_marked
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.let_go import MarkedFile, marked_files, note_deleted

LETTERS = (Kind.DEAD_LETTERS,)


def let_go_of_letters(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Let go of the dead letters of dates that were over so many days ago; 0: of none."""
    ledger, topics = worker.ledger, worker.settings.topics
    tally = Tally("dead letters")

    def delete() -> None:
        delete_marked(
            worker,
            tally,
            lambda limit: marked_files(ledger, limit, LETTERS, *topics),
            lambda gone: note_deleted(ledger, gone),
            lambda file: (file.rows, file.bytes),
            "letters-deleted",
            before=lambda files: _delete_rows(worker, files),
        )

    return let_go_of_dates(
        worker,
        tally,
        keep_days,
        LETTERS,
        count=lambda kept: kept.rows,
        delete=delete,
        marked_point="letters-marked",
        dry_run=dry_run,
    )


def _delete_rows(worker: Worker, files: Sequence[MarkedFile]) -> None:
    """Delete the rows of these files at once: each such command costs a look at every part."""
    if not files:
        return
    days = sorted({file.arrival_date for file in files})
    with named_errors(f"deleting dead letters of {days[0]} to {days[-1]}"):
        worker.clickhouse.command(
            "ALTER TABLE {database:Identifier}.dead_letters DELETE "
            "WHERE arrival_date IN {days:Array(Date)} AND _batch_id IN {batch_ids:Array(String)} "
            "SETTINGS mutations_sync = 2",
            parameters={
                "database": worker.settings.clickhouse_database,
                "days": days,
                "batch_ids": [file.batch_id for file in files],
            },
        )
