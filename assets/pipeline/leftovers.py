"""Leftovers: files of attempts at staging that were never registered, or are so no more.

    attempts ─▶ their names, whatever became of them ─┬─ named in the ledger: kept
                                                      └─ deleted

Asked for once a batch is registered, and again before it is loaded or released: whoever died in
between left that to the next worker. A stager whose run is gone takes back what it has made, as
that may have appeared after all this. Invariant: nothing that the ledger names is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    files, keys = _written_by(batch, range(1, attempts + 1))
    for path in sorted((files - registered) | (keys - named_key_files(ledger, keys))):
        lake.delete(path)


def take_back(lake: Lake, batch: Batch, attempt: int) -> None:
    """Delete what one attempt has made, which nobody will ever register."""
    files, keys = _written_by(batch, [attempt])
    for path in sorted(files | keys):
        lake.delete(path)


def _written_by(batch: Batch, attempts: Iterable[int]) -> tuple[set[str], set[str]]:
    """The paths that attempts may have written to: of staged files, and of key files."""
    numbers = list(attempts)
    files = {staged_path(kind, batch, number) for kind in Kind for number in numbers}
    return files, {staged_path("keys", batch, number, "arrow") for number in numbers}
