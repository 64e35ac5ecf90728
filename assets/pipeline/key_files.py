"""Key files: sorted sets of (h1, h2) keys in the lake, and how they are kept few.

    Keys ─write_key_file─▶ a key file ─files_to_merge─▶ merge_key_files ─▶ fewer, longer ones
                               └─open_key_file─▶ Keys, memory-mapped

A key file is an uncompressed Arrow IPC file of `KEY_FILE`, sorted by (h1, h2) through all its
record batches. Every batch writes one; merging keeps them few, as a log-structured set does.
Which files there are stands in the ledger: nothing here lists a folder. A key file holds
nothing that the staged files do not, so a lost one can be written again from them.

Invariants: a key file is whole or absent, and never changed. A key costs 32 bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from assets.pipeline.errors import KeyFileUnreadable, LakeTrouble
from assets.pipeline.object_store import is_of_a_store, told

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]

KEY_FILE = pa.schema(
    [
        pa.field("h1", pa.uint64(), nullable=False),  # sorted, spread evenly over 64 bits
        pa.field("h2", pa.uint64(), nullable=False),  # sorted among equal h1
        pa.field("partition", pa.int32(), nullable=False),  # where the first record stands
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("batch", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)

SEGMENT_ROWS = 1 << 20
"""Rows of a record batch in a merged key file: what a merge holds in memory at a time."""

BYTES_A_KEY = 32
"""What a key costs in a file, about."""

MOST_FILES = 8
"""Key files of one arrival date beyond which `files_to_merge` finds some to merge.

Each file costs a batch's look-up, and merging costs, too: 8 is less in sum than 16.
"""

_NO_NAMES = pa.array([], pa.string())
_PAUSES_S = (0.5, 1.0)  # before a file that cannot be read is read again
_NOT_KEPT = np.int32(-1)


@dataclass(frozen=True)
class Keys:
    """Keys sorted by (h1, h2), and the record each was first seen on."""

    h1: Words
    h2: Words
    partition: Ints
    offset: Longs
    batch: Ints  # index into `batches`
    batches: pa.StringArray

    def __len__(self) -> int:
        return len(self.h1)

    def rows(self, at: slice | npt.NDArray[np.bool_]) -> Keys:
        """The keys in these places."""
        return Keys(
            self.h1[at],
            self.h2[at],
            self.partition[at],
            self.offset[at],
            self.batch[at],
            self.batches,
        )


def open_key_file(filesystem: fs.FileSystem, path: str) -> list[Keys]:
    """A key file's segments, in order, none of them empty.

    Raises KeyFileUnreadable when it is not there or damaged, or after a few tries at reading it:
    what was in it is in staged files, too. LakeTrouble where a store does not answer or refuses:
    that is not for want of this file.
    """
    pauses = iter(_PAUSES_S)
    while True:
        try:
            return _open_key_file(filesystem, path)
        except OSError as error:
            if is_of_a_store(error):
                raise LakeTrouble(f"reading {path} in the lake failed: {told(error)}") from error
            pause_s = next(pauses, None)
            if pause_s is None:
                raise KeyFileUnreadable(path, str(error)) from error
            time.sleep(pause_s)


def _open_key_file(filesystem: fs.FileSystem, path: str) -> list[Keys]:
    try:
        local = _local(filesystem, path)
        if local is not None:
            source = pa.memory_map(local)
        else:
            with filesystem.open_input_file(path) as stream:
                source = pa.BufferReader(stream.read_buffer())
        reader = pa.ipc.open_file(source)
        if not reader.schema.equals(KEY_FILE):
            raise KeyFileUnreadable(path, "its columns are not those of a key file")
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise KeyFileUnreadable(path, str(error)) from error
    if not batches:
        return []
    names = batches[0]["batch"].dictionary
    return [_of_record_batch(batch, names) for batch in batches if batch.num_rows]


def write_key_file(filesystem: fs.FileSystem, path: str, keys: Keys) -> int:
    """Writes one batch's keys (`SeenKeys.added`); returns their number. Same keys, same bytes."""
    return _write(filesystem, path, keys.batches, [keys])


def merge_key_files(
    filesystem: fs.FileSystem,
    paths: Sequence[str],
    target: str,
    keep: Callable[[str], bool] = lambda batch_id: True,
) -> int:
    """Writes the keys of several files, oldest first, as one; returns their number.

    Only those of batches to `keep`. The inputs stay: the caller drops them once the ledger names
    `target` in their place. Memory: about 150 bytes for each of `SEGMENT_ROWS` keys at a time,
    whatever the files' size; beyond a local lake also the inputs themselves.
    """
    files = [file for path in paths if (file := open_key_file(filesystem, path))]
    known = pa.concat_arrays([file[0].batches for file in files] or [_NO_NAMES]).unique()
    names = pa.array(filter(keep, known.to_pylist()), pa.string())
    inputs: list[tuple[Keys, Ints]] = []  # a segment, and its batches' numbers in the target
    for file in files:
        numbers = pc.index_in(file[0].batches, value_set=names).fill_null(_NOT_KEPT).to_numpy()
        inputs.extend((keys, numbers) for keys in file)
    return _write(filesystem, target, names, _merged(inputs, names))


def _merged(inputs: list[tuple[Keys, Ints]], names: pa.StringArray) -> Iterator[Keys]:
    """All the keys in order, about `SEGMENT_ROWS` at a time."""
    if not inputs:
        return
    # h1 is spread evenly, so equal steps of it are about equal numbers of keys.
    slices = max(1, -(-sum(len(keys) for keys, _ in inputs) // SEGMENT_ROWS))
    bounds = np.array([step * (1 << 64) // slices for step in range(1, slices)], np.uint64)
    ends = [[0, *np.searchsorted(keys.h1, bounds).tolist(), len(keys)] for keys, _ in inputs]
    for number in range(slices):
        parts = []
        for (keys, numbers), end in zip(inputs, ends, strict=True):
            part = keys.rows(slice(end[number], end[number + 1]))
            part = replace(part, batch=numbers[part.batch], batches=names)
            parts.append(part.rows(part.batch != _NOT_KEPT) if _NOT_KEPT in numbers else part)
        yield joined(parts)


def files_to_merge(files: Sequence[tuple[str, int]], most: int = MOST_FILES) -> list[str]:
    """Which of these (path, rows) to merge into one now, in the order given; none: no need.

    Give it the files of one arrival date, so that a day leaves the window with its files.
    Nothing is merged up to `most` files. Beyond, the smallest are, together with every next
    one that is at most twice their sum: so a key's file grows by half at least whenever the
    key is written again (log n times), and sizes of files that do not qualify grow threefold
    from one to the next, so that there are never many of them.
    """
    if len(files) <= most:
        return []
    by_size = sorted(range(len(files)), key=lambda at: (files[at][1], at))
    for start in range(len(files) - 1):
        chosen = [by_size[start]]
        total = files[by_size[start]][1]
        for at in by_size[start + 1 :]:
            if files[at][1] > 2 * total:
                break
            chosen.append(at)
            total += files[at][1]
        if len(chosen) > 1:
            return [files[at][0] for at in sorted(chosen)]
    return []


def no_keys(batches: pa.StringArray) -> Keys:
    """The empty set of this batch or these."""
    words, ints = np.empty(0, np.uint64), np.empty(0, np.int32)
    return Keys(words, words, ints, np.empty(0, np.int64), ints, batches)


def joined(parts: Sequence[Keys]) -> Keys:
    """Several sorted keys with the same `batches` as one; equal keys stay in order of parts."""
    if len(parts) == 1:
        return parts[0]
    h1 = np.concatenate([part.h1 for part in parts])
    h2 = np.concatenate([part.h2 for part in parts])
    order = places_in_order(h1, h2)
    return Keys(
        h1[order],
        h2[order],
        np.concatenate([part.partition for part in parts])[order],
        np.concatenate([part.offset for part in parts])[order],
        np.concatenate([part.batch for part in parts])[order],
        parts[0].batches,
    )


def places_in_order(h1: Words, h2: Words) -> Places:
    """Places in the order of (h1, h2), equal keys in the order they came."""
    order = np.argsort(h1)
    ordered = h1[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        # Rare, so only the rows that share their h1 are sorted a second time.
        tied = np.zeros(len(h1), np.bool_)
        tied[1:] |= same
        tied[:-1] |= same
        rows = order[tied]
        order[tied] = rows[np.lexsort((rows, h2[rows], h1[rows]))]
    return order


def _of_record_batch(batch: pa.RecordBatch, names: pa.StringArray) -> Keys:
    """The columns as they lie in the file, without a copy."""
    return Keys(
        batch["h1"].to_numpy(),
        batch["h2"].to_numpy(),
        batch["partition"].to_numpy(),
        batch["offset"].to_numpy(),
        batch["batch"].indices.to_numpy(),
        names,
    )


def _write(
    filesystem: fs.FileSystem, path: str, names: pa.StringArray, segments: Iterable[Keys]
) -> int:
    """One record batch a segment. A local file appears whole, by a rename."""
    local = _local(filesystem, path)
    if local is None:
        # An object store shows an object when it is complete; one cut short has no footer and
        # is named by no ledger.
        with filesystem.open_output_stream(path) as sink:
            return _write_to(sink, names, segments)
    Path(local).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{local}.{uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            rows = _write_to(file, names, segments)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _write_to(sink: object, names: pa.StringArray, segments: Iterable[Keys]) -> int:
    rows = 0
    with pa.ipc.new_file(sink, KEY_FILE) as writer:
        for keys in segments:
            batch = pa.DictionaryArray.from_arrays(pa.array(keys.batch), names)
            columns = [keys.h1, keys.h2, keys.partition, keys.offset]
            writer.write_batch(pa.record_batch([*map(pa.array, columns), batch], schema=KEY_FILE))
            rows += len(keys)
    return rows


def _local(filesystem: fs.FileSystem, path: str) -> str | None:
    """The path on this machine, when that is where the file system is."""
    while isinstance(filesystem, fs.SubTreeFileSystem):
        path = filesystem.base_path + path
        filesystem = filesystem.base_fs
    return path if isinstance(filesystem, fs.LocalFileSystem) else None
