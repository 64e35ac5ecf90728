"""Leftovers: files of attempts at staging that were never registered, or are so no more.

    attempts ─▶ their names, whatever became of them ─┬─ named in the ledger: kept
                                                      └─ deleted

Asked for once a batch is registered, and again before it is loaded or released: whoever died in
between left that to the next worker. Invariant: nothing that the ledger names is deleted.
"""

from __future__ import annotations

from sqlalchemy import Engine

from assets.pipeline.batch import Batch, Kind
from assets.pipeline.lake import Lake
from assets.pipeline.staged_files import staged_path
from orchestration.ledger.keys import named_key_files


def delete_leftovers(ledger: Engine, lake: Lake, batch: Batch, attempts: int) -> None:
    """Delete what the first so many attempts at staging left besides what is registered.

    `attempts` was counted before the lease was last checked: a later one may be at work by now.
    """
    if batch.staged is not None and attempts == 1:
        return
    registered = {file.path for file in batch.staged.files} if batch.staged else set()
    numbers = range(1, attempts + 1)
    files = {staged_path(kind, batch, number) for kind in Kind for number in numbers}
    keys = {staged_path("keys", batch, number, "arrow") for number in numbers}
    for path in sorted((files - registered) | (keys - named_key_files(ledger, keys))):
        lake.delete(path)
