"""Keys: the index of duplicates, of dates that no batch is compared with any more.

    a date beyond the window, and loaded long ago
      ─▶ no batch near it is open ─▶ marked ─▶ deleted ─▶ noted as deleted

They hold nothing that staged files or ClickHouse do not: a batch or a redrive of such a date finds
the marks and makes the index anew (assets/pipeline/key_upkeep.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from assets.pipeline.failpoints import failpoint
from assets.pipeline.key_files import BYTES_A_KEY
from assets.pipeline.worker import Worker
from orchestration.housekeeping.deleting import delete_marked
from orchestration.housekeeping.judge import JUST_LOADED, UNFINISHED, midnight_us
from orchestration.housekeeping.tally import Tally
from orchestration.ledger.keys import (
    dates_with_key_files,
    has_unsettled_near,
    let_go_of_keys,
    marked_key_files,
    note_keys_deleted,
)
from orchestration.ledger.let_go import was_settled_since


def let_go_of_index(worker: Worker, keep_days: int, *, dry_run: bool = False) -> Tally:
    """Let go of the index of dates that were over, and loaded, so many days ago; 0: of none."""
    tally = Tally("files of the duplicate index")
    if not dry_run:
        _delete(worker, tally)
    if not keep_days:
        return tally
    ledger = worker.ledger
    reach = timedelta(days=worker.settings.duplicate_window_days - 1)
    before = datetime.now(UTC).date() - timedelta(days=keep_days)
    for day, count, keys in dates_with_key_files(ledger, before):
        if not tally.has_time():
            break
        if was_settled_since(ledger, day, midnight_us(before)):
            tally.kept[JUST_LOADED] += count
        elif dry_run:
            if has_unsettled_near(ledger, day, reach):
                tally.kept[UNFINISHED] += count
            else:
                tally.add(count, keys * BYTES_A_KEY)
        elif let_go_of_keys(ledger, day, reach):
            failpoint("keys-marked")
            _delete(worker, tally)
        else:
            tally.kept[UNFINISHED] += count
    return tally


def _delete(worker: Worker, tally: Tally) -> None:
    delete_marked(
        worker,
        tally,
        lambda limit: marked_key_files(worker.ledger, limit),
        lambda gone: note_keys_deleted(worker.ledger, [file.path for file in gone]),
        lambda file: (1, file.rows * BYTES_A_KEY),
        "keys-deleted",
    )
