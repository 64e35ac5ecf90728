"""Staged files, and the duplicates that were found beside them: see dates.py."""

from __future__ import annotations

from assets.pipeline.batch import Kind
from assets.pipeline.worker import Worker
from orchestration.housekeeping.dates import let_go_of_dates
from orchestration.housekeeping.deleting import delete_marked
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.let_go import marked_files, note_deleted

STAGED = (Kind.EVENTS, Kind.DUPLICATES)
"""What goes by TIDEMARK_KEEP_STAGED_DAYS; dead letters have a setting of their own."""


def let_go_of_staged(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Let go of the staged files of dates that were over so many days ago; 0: of none."""
    ledger, topics = worker.ledger, worker.settings.topics
    tally = Tally("staged files")

    def delete() -> None:
        delete_marked(
            worker,
            tally,
            lambda limit: marked_files(ledger, limit, STAGED, *topics),
            lambda gone: note_deleted(ledger, gone),
            lambda file: (1, file.bytes),
            "let-go-deleted",
        )

    return let_go_of_dates(
        worker,
        tally,
        keep_days,
        STAGED,
        count=lambda kept: kept.count,
        delete=delete,
        marked_point="let-go-marked",
        dry_run=dry_run,
    )
