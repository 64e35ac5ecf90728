"""The duplicate index over time: opened for a batch, kept few, and made anew when it is lost.

The ledger says which files make up the index. They hold nothing that the staged files do not, so
an unreadable one costs a reading of its arrival date's staged events, and no duplicate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine

from assets.pipeline.batch import Batch, KeyFile, Kind, Staged
from assets.pipeline.duplicates import SeenKeys, key_columns
from assets.pipeline.errors import KeyFileUnreadable, StagedFileDamaged
from assets.pipeline.key_files import files_to_merge, merge_key_files, write_key_file
from assets.pipeline.lake import Lake, lake_path
from assets.pipeline.staged_files import staged_places
from orchestration.ledger.batches import staged_of_date, unstaged_batches
from orchestration.ledger.connection import now_us
from orchestration.ledger.keys import (
    forget_key_files,
    live_key_files,
    replace_key_files,
    retired_key_files,
)

KEPT_FOR_READERS_US = 3_600 * 1_000_000
"""How long a key file is kept after its keys are in another: a worker may have it open."""


def open_index(
    ledger: Engine, lake: Lake, batch: Batch, window_days: int, say: Callable[[str], None]
) -> SeenKeys:
    """What the batch's records are compared with: so many arrival dates before and after.

    After, because a batch that was put aside is staged when newer ones are staged already.
    """
    reach = timedelta(days=window_days - 1)
    first, last = batch.arrival_date - reach, batch.arrival_date + reach
    try:
        return _opened(ledger, lake, batch, first, last)
    except KeyFileUnreadable as error:
        say(f"{error}: the duplicate index of {first} to {last} is made anew")
        for days in range((last - first).days + 1):
            make_anew(ledger, lake, first + timedelta(days=days), say)
        return _opened(ledger, lake, batch, first, last)


def keep_index(ledger: Engine, lake: Lake, days: Iterable[date]) -> None:
    """Keep the index's files few, and delete those that nobody can have open any more."""
    for day in sorted(set(days)):
        files = {file.path: file for file in live_key_files(ledger, day, day)}
        merged = files_to_merge([(file.path, file.rows) for file in files.values()])
        if merged:
            target = lake_path("keys", day, f"merged-{now_us()}.arrow")
            paths = [lake.full_path(path) for path in merged]
            rows = merge_key_files(lake.filesystem, paths, lake.full_path(target))
            into = KeyFile(target, day, rows)
            if not replace_key_files(ledger, [files[path] for path in merged], [into]):
                lake.delete(target)  # another worker has merged them
    retired = retired_key_files(ledger, now_us() - KEPT_FOR_READERS_US)
    for path in retired:
        lake.delete(path)
    if retired:
        forget_key_files(ledger, retired)


def has_lost_events(lake: Lake, before: Batch, staged: Staged, say: Callable[[str], None]) -> bool:
    """Whether events of a batch are none any more after it was staged again.

    Whoever sends such an event once more must not be told that it is a duplicate of nothing.
    """
    assert before.staged is not None
    try:
        events_before = set(staged_places(lake, before.staged, Kind.EVENTS))
        lost = events_before.difference(staged_places(lake, staged, Kind.EVENTS))
    except (OSError, pa.ArrowException) as error:
        say(f"what batch {before.batch_id} held before cannot be read: {error}")
        return True
    return bool(lost)


def void_file(day: date) -> KeyFile:
    """A file that is not there. Named in the ledger, it has the date's index made anew.

    So a worker that dies before it has done so leaves that to the next one.
    """
    return KeyFile(lake_path("keys", day, f"void-{now_us()}.arrow"), day, 0)


def _opened(ledger: Engine, lake: Lake, batch: Batch, first: date, last: date) -> SeenKeys:
    window = live_key_files(ledger, first, last)
    return SeenKeys(
        lake.filesystem,
        [lake.full_path(file.path) for file in window],
        batch.batch_id,
        # What a batch once held, and may have lost, must not make duplicates of its resends.
        replaced=unstaged_batches(ledger, first, last),
    )


def make_anew(ledger: Engine, lake: Lake, day: date, say: Callable[[str], None]) -> None:
    """Write the keys of every staged batch of a date again, in place of the date's files."""
    before = live_key_files(ledger, day, day)
    now = now_us()
    written = []
    for batch in staged_of_date(ledger, day):
        file = batch.staged.file(Kind.EVENTS) if batch.staged else None
        if file is None:
            continue
        keys = SeenKeys(lake.filesystem, [], batch.batch_id)
        try:
            lake.check(file.path, file.bytes, file.sha256)
        except StagedFileDamaged as error:
            say(f"{error}: events of batch {batch.batch_id} that are sent again will not be found")
            continue
        table = pq.read_table(
            lake.full_path(file.path),
            columns=["project_id", "uuid", "_partition", "_offset"],
            filesystem=lake.filesystem,
            partitioning=None,
        )
        uuids = np.frombuffer(
            table.column("uuid").combine_chunks().storage.buffers()[1], np.uint8
        ).reshape(-1, 16)[: len(table)]
        keys.mark(
            *key_columns(uuids, table.column("project_id").to_numpy()),
            table.column("_partition").to_numpy(),
            table.column("_offset").to_numpy(),
        )
        path = lake_path("keys", day, f"{batch.batch_id}-anew-{now}.arrow")
        rows = write_key_file(lake.filesystem, lake.full_path(path), keys.added())
        written.append(KeyFile(path, day, rows))
    replace_key_files(ledger, before, written)
