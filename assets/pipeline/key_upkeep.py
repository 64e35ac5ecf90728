"""The duplicate index over time: opened for a batch, kept few, and made anew when it is lost.

The ledger says which files make up the index. They hold nothing that the staged files do not, so
an unreadable one costs a reading of its arrival date's staged events, and no duplicate. So does the
index of a date of which housekeeping let go, when a batch of long ago, or a redrive, needs it. Of a
batch whose staged file was let go, too, the table has the keys.

A file that is written here is announced in the ledger first: should it never be swapped in, because
its writer was killed, or was second, or its batch was not registered, `keep_index` deletes it in
its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine

from assets.pipeline.batch import Batch, KeyFile, Kind, StagedFile
from assets.pipeline.duplicates import SeenKeys, key_columns
from assets.pipeline.errors import KeyFileUnreadable, StagedFileDamaged
from assets.pipeline.key_files import (
    files_to_merge,
    merge_key_files,
    open_key_file,
    write_key_file,
)
from assets.pipeline.lake import Lake, lake_path, named_errors
from assets.pipeline.staged_files import check_staged, told_let_go
from orchestration.ledger.batches import batches_named, staged_of_date, unstaged_batches
from orchestration.ledger.connection import now_us
from orchestration.ledger.keys import (
    KeySwap,
    announce_key_file,
    forget_key_files,
    key_files_let_go,
    live_key_files,
    replace_key_files,
    retired_key_files,
)

KEPT_FOR_READERS_US = 3_600 * 1_000_000
"""How long a key file is kept after its keys are in another: a worker may have it open."""


LoadedKeys = Callable[[Batch], pa.Table]
"""What ClickHouse has of a batch: project_id, uuid, _partition and _offset of each row."""


@dataclass(frozen=True)
class Window:
    """What a batch's records are compared with, as the index is at one moment.

    `paths` are the key files of the arrival dates from `first` to `last`; keys of the batches in
    `void` do not count in them.
    """

    first: date
    last: date
    paths: tuple[str, ...]
    void: tuple[str, ...]


def window_dates(batch: Batch, window_days: int) -> tuple[date, date]:
    """The first and the last arrival date of what a batch is compared with.

    So many dates before and after its own: after, because a batch that was put aside is staged when
    newer ones are staged already.
    """
    reach = timedelta(days=window_days - 1)
    return batch.arrival_date - reach, batch.arrival_date + reach


def open_index(
    ledger: Engine,
    lake: Lake,
    batch: Batch,
    window_days: int,
    say: Callable[[str], None],
    loaded: LoadedKeys,
    *,
    only_looks: bool = False,
) -> SeenKeys:
    """What the batch's records are compared with: so many arrival dates before and after.

    `loaded` is asked for what housekeeping has let go of. Who only looks writes nothing: what is
    not there, or cannot be read, is said and left out.
    """
    first, last = window_dates(batch, window_days)
    if only_looks:
        for day in _dates_let_go(ledger, first, last):
            say(f"the duplicate index of {day} was let go: its duplicates would count as events")
    else:
        _bring_back(ledger, lake, first, last, say, loaded)
    try:
        return _opened(ledger, lake, batch, first, last)
    except KeyFileUnreadable as error:
        if only_looks:
            say(f"{error}: duplicates of what is in it would count as events")
            return _opened(ledger, lake, batch, first, last, only_readable=True)
        say(f"{error}: the duplicate index of {first} to {last} is made anew")
        for days in range((last - first).days + 1):
            make_anew(ledger, lake, first + timedelta(days=days), say, loaded)
        return _opened(ledger, lake, batch, first, last)


def window_now(
    ledger: Engine,
    lake: Lake,
    batch: Batch,
    window_days: int,
    say: Callable[[str], None],
    loaded: LoadedKeys,
) -> Window:
    """The same for another process, which opens it with `open_window`; it makes nothing anew."""
    first, last = window_dates(batch, window_days)
    _bring_back(ledger, lake, first, last, say, loaded)
    return _window(ledger, first, last)


def open_window(lake: Lake, batch: Batch, window: Window) -> SeenKeys:
    """Raises KeyFileUnreadable where the index has to be made anew first."""
    paths = map(lake.full_path, window.paths)
    return SeenKeys(lake.filesystem, paths, batch.batch_id, replaced=window.void)


def _dates_let_go(ledger: Engine, first: date, last: date) -> list[date]:
    return sorted({file.arrival_date for file in key_files_let_go(ledger, first, last)})


def _bring_back(
    ledger: Engine,
    lake: Lake,
    first: date,
    last: date,
    say: Callable[[str], None],
    loaded: LoadedKeys,
) -> None:
    """Make anew what housekeeping has let go of."""
    for day in _dates_let_go(ledger, first, last):
        say(f"the duplicate index of {day} was let go: it is made anew")
        make_anew(ledger, lake, day, say, loaded)


def keep_index(ledger: Engine, lake: Lake, days: Iterable[date]) -> None:
    """Keep the index's files few, and delete those that nobody can have open any more."""
    for day in sorted(set(days)):
        files = {file.path: file for file in live_key_files(ledger, day, day)}
        found = files_to_merge([(file.path, file.rows) for file in files.values()])
        if found:
            merged = [files[path] for path in found]
            replace_key_files(ledger, merged, [_copied(ledger, lake, merged, "merged")])
    retired = retired_key_files(ledger, now_us() - KEPT_FOR_READERS_US)
    for path in retired:
        lake.delete(path)
    if retired:
        forget_key_files(ledger, retired)


def without_batch(
    ledger: Engine, lake: Lake, batch: Batch, say: Callable[[str], None], loaded: LoadedKeys
) -> KeySwap:
    """Write the files of the index that have keys of a batch again, without them.

    For a batch that is staged anew, or whose events are lost: what it held before and holds no
    more must not make duplicates of its resends. Keys of all other batches are copied as they are
    and not made anew from staged files: that of a batch loaded long since may be gone by now.
    Nothing counts before the swap is in the ledger, so it belongs into the transaction that
    registers what the batch holds now. Until then a planned batch's keys are passed over.
    """
    day = batch.arrival_date
    try:
        before = [file for file in live_key_files(ledger, day, day) if _has_keys(lake, file, batch)]
    except KeyFileUnreadable as error:
        say(f"{error}: the duplicate index of {day} is made anew")
        make_anew(ledger, lake, day, say, loaded)
        before = [file for file in live_key_files(ledger, day, day) if _has_keys(lake, file, batch)]
    if not before:
        return KeySwap()
    name = f"without-{batch.batch_id}"
    after = _copied(ledger, lake, before, name, lambda one: one != batch.batch_id)
    return KeySwap(tuple(before), (after,) if after.rows else ())


def _has_keys(lake: Lake, file: KeyFile, batch: Batch) -> bool:
    segments = open_key_file(lake.filesystem, lake.full_path(file.path))
    return bool(segments) and batch.batch_id in segments[0].batches.to_pylist()


def _copied(
    ledger: Engine,
    lake: Lake,
    files: Sequence[KeyFile],
    name: str,
    keep: Callable[[str], bool] = lambda one: True,
) -> KeyFile:
    """One file with the keys of several of a date, of the batches to keep."""
    day = files[0].arrival_date
    target = lake_path("keys", day, f"{name}-{now_us()}.arrow")
    announce_key_file(ledger, target, day)
    paths = [lake.full_path(file.path) for file in files]
    with named_errors("writing", target):
        rows = merge_key_files(lake.filesystem, paths, lake.full_path(target), keep)
    return KeyFile(target, day, rows)


def _opened(
    ledger: Engine,
    lake: Lake,
    batch: Batch,
    first: date,
    last: date,
    *,
    only_readable: bool = False,
) -> SeenKeys:
    window = _window(ledger, first, last)
    if only_readable:
        readable = (path for path in window.paths if _is_readable(lake, path))
        window = replace(window, paths=tuple(readable))
    return open_window(lake, batch, window)


def _window(ledger: Engine, first: date, last: date) -> Window:
    paths = tuple(file.path for file in live_key_files(ledger, first, last))
    # What a batch once held, and may have lost, must not make duplicates of its resends.
    return Window(first, last, paths, tuple(unstaged_batches(ledger, first, last)))


def make_anew(
    ledger: Engine,
    lake: Lake,
    day: date,
    say: Callable[[str], None],
    loaded: LoadedKeys,
) -> None:
    """Write the keys of every staged batch of a date again, in place of the date's files.

    Of a batch whose staged file is gone, the keys in files that can be read are kept, and of one
    whose file was let go those that are in ClickHouse are taken.
    """
    live = live_key_files(ledger, day, day)
    before = [*live, *key_files_let_go(ledger, day, day)]
    now = now_us()
    written = []
    unread: set[str] = set()
    for batch in staged_of_date(ledger, day):
        try:
            table = _keys_of(ledger, lake, batch, loaded)
        except StagedFileDamaged as error:
            say(f"{error}: events of batch {batch.batch_id} that are sent again may not be found")
            unread.add(batch.batch_id)
            continue
        if table is None:
            continue
        keys = SeenKeys(lake.filesystem, [], batch.batch_id)
        stored = table.column("uuid").combine_chunks()
        stored = stored.storage if isinstance(stored, pa.ExtensionArray) else stored
        uuids = np.frombuffer(stored.buffers()[1], np.uint8).reshape(-1, 16)[: len(table)]
        keys.mark(
            *key_columns(uuids, table.column("project_id").to_numpy()),
            table.column("_partition").to_numpy(),
            table.column("_offset").to_numpy(),
        )
        path = lake_path("keys", day, f"{batch.batch_id}-anew-{now}.arrow")
        announce_key_file(ledger, path, day)
        with named_errors("writing", path):
            rows = write_key_file(lake.filesystem, lake.full_path(path), keys.added())
        written.append(KeyFile(path, day, rows))
    if unread and (readable := [file for file in live if _is_readable(lake, file.path)]):
        kept = _copied(ledger, lake, readable, "kept", lambda batch_id: batch_id in unread)
        written.append(kept)
    replace_key_files(ledger, before, written)


def _keys_of(ledger: Engine, lake: Lake, batch: Batch, loaded: LoadedKeys) -> pa.Table | None:
    """The keys of a batch; None when it has no events any more that could be sent again.

    Its file may be let go of, or give its place to another, before it is read: then what the ledger
    says by now counts.
    """
    while True:
        file = batch.staged.file(Kind.EVENTS) if batch.staged else None
        if file is None or (file.let_go_at is not None and batch.rows_let_go_at is not None):
            return None
        try:
            return _read_keys(lake, batch, file, loaded)
        except StagedFileDamaged:
            found = batches_named(ledger, [batch.batch_id])
            if not found:
                return None
            (now,) = found
            file_now = now.staged.file(Kind.EVENTS) if now.staged else None
            if (file_now, now.rows_let_go_at) == (file, batch.rows_let_go_at):
                raise
            batch = now


def _read_keys(lake: Lake, batch: Batch, file: StagedFile, loaded: LoadedKeys) -> pa.Table:
    if file.let_go_at is not None:
        table = loaded(batch)
        if len(table) != file.rows:
            raise StagedFileDamaged(
                f"{told_let_go(file)}, and ClickHouse has {len(table):,} of its {file.rows:,} rows"
            )
        return table
    check_staged(lake, file)
    try:
        return pq.read_table(
            lake.full_path(file.path),
            columns=["project_id", "uuid", "_partition", "_offset"],
            filesystem=lake.filesystem,
            partitioning=None,
        )
    except FileNotFoundError as error:  # it was there when it was checked
        raise StagedFileDamaged(str(error)) from error


def _is_readable(lake: Lake, path: str) -> bool:
    with suppress(KeyFileUnreadable):
        open_key_file(lake.filesystem, lake.full_path(path))
        return True
    return False
