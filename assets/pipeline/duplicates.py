"""Which (project, uuid) was seen before: a set of sorted key files in the lake.

    uuid, project ─key_columns─▶ h1, h2 ─SeenKeys.mark─▶ Found: which rows are duplicates, of what
                                            │   ▲
                     this batch's new keys ─┘   └─ the key files of the window, memory-mapped
                              │                               ▲
                              └─write_key_file─▶ a key file ─▶ files_to_merge ─▶ merge_key_files

A key file is an uncompressed Arrow IPC file of `KEY_FILE`, sorted by (h1, h2) through all its
record batches. Every batch writes one; merging keeps them few, as a log-structured set does.
Which files make up a window stands in the ledger: nothing here lists a folder. A key file
holds nothing that the staged files do not, so a lost one can be written again from them.

Invariants: a key file is whole or absent, and never changed. A record is never the duplicate of
itself: hits in the files on the current batch (staged once before, then a crash) do not count.
A key costs 32 bytes; probes cost by their number, not by the size of the set.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Places = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

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

MOST_FILES = 16
"""Key files of one arrival date beyond which `files_to_merge` finds some to merge."""


class KeyFileUnreadable(Exception):
    """A key file that the ledger names is missing, damaged or of another form."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"key file {path} cannot be read ({reason}): "
            "write it again from the staged files of its batches"
        )


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

    def rows(self, start: int, stop: int) -> Keys:
        """The keys in these places."""
        at = slice(start, stop)
        return Keys(
            self.h1[at],
            self.h2[at],
            self.partition[at],
            self.offset[at],
            self.batch[at],
            self.batches,
        )


@dataclass(frozen=True)
class Found:
    """The rows of a chunk that are duplicates, ascending, and the first record of each."""

    rows: Places
    batch_id: pa.StringArray
    partition: Ints
    offset: Longs

    def mask(self, length: int) -> Mask:
        """True for the duplicates among `length` rows."""
        mask = np.zeros(length, np.bool_)
        mask[self.rows] = True
        return mask


def key_columns(
    uuid_bytes: npt.NDArray[np.uint8], project_id: npt.NDArray[np.integer]
) -> tuple[Words, Words]:
    """128 bits per row from the uuid's 16 bytes and the project.

    A three-round Feistel network: within a project no two uuids share a key, and h1 is spread
    evenly even where uuids begin with the time. Part of the format of key files: do not change.
    """
    words = np.ascontiguousarray(uuid_bytes).view("<u8").astype(np.uint64, copy=False)
    left, right = words[:, 0], words[:, 1]
    salt = _mixed(project_id.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    left = left ^ _mixed(right + salt)
    right = right ^ _mixed(left + (salt ^ np.uint64(0xD1B54A32D192ED03)))
    left ^= _mixed(right + (salt ^ np.uint64(0x8CB92BA72F3D8DD7)))
    return left, right


def _mixed(words: Words) -> Words:
    """MurmurHash3's 64-bit finaliser, in place: every input bit reaches every output bit."""
    words ^= words >> np.uint64(33)
    words *= np.uint64(0xFF51AFD7ED558CCD)
    words ^= words >> np.uint64(33)
    words *= np.uint64(0xC4CEB9FE1A85EC53)
    words ^= words >> np.uint64(33)
    return words


def _order(h1: Words, h2: Words) -> Places:
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


def _joined(parts: Sequence[Keys]) -> Keys:
    """Several sorted keys with the same `batches` as one; equal keys stay in order of parts."""
    if len(parts) == 1:
        return parts[0]
    h1 = np.concatenate([part.h1 for part in parts])
    h2 = np.concatenate([part.h2 for part in parts])
    order = _order(h1, h2)
    return Keys(
        h1[order],
        h2[order],
        np.concatenate([part.partition for part in parts])[order],
        np.concatenate([part.offset for part in parts])[order],
        np.concatenate([part.batch for part in parts])[order],
        parts[0].batches,
    )


class SeenKeys:
    """What a batch compares its records with: the window's key files and its own rows so far.

    `paths`: the window's key files, oldest first. `batch_id`: the batch being staged; its keys
    in the files do not count, nor do those of the batches in `replaced` (which a rebuild is
    about to replace). Local files are memory-mapped; of other file systems they are read whole.
    """

    def __init__(
        self,
        filesystem: fs.FileSystem,
        paths: Iterable[str],
        batch_id: str,
        replaced: Collection[str] = (),
    ) -> None:
        self._files = [open_key_file(filesystem, path) for path in paths]
        self._void_batches = pa.array([batch_id, *replaced], pa.string())
        self._void_masks: dict[int, Mask] = {}
        # Sorted, each over twice as long as the next, so that a key moves log n times.
        self._runs = [_no_keys(pa.array([batch_id], pa.string()))]
        # Batch ids that were named in a result, by their number there; 0 is this batch.
        self._numbers = {batch_id: 0}

    def find(self, h1: Words, h2: Words) -> Found:
        """The rows whose key is in the files or was marked before. Changes nothing."""
        order, first, group = _distinct(h1, h2)
        number, partition, offset = self._look_up(h1[order][first], h2[order][first])
        return self._found(order, group, (number >= 0)[group], number, partition, offset)

    def mark(self, h1: Words, h2: Words, partition: Ints, offset: Longs) -> Found:
        """The rows whose key was seen before, be it earlier in this chunk; adds the other keys.

        The first row of a key, by its place, is the original unless an earlier one is known.
        """
        order, first, group = _distinct(h1, h2)
        originals = order[first]
        h1, h2 = h1[originals], h2[originals]
        number, first_partition, first_offset = self._look_up(h1, h2)
        new = number < 0
        rows = originals[new]
        number[new] = 0
        first_partition[new] = partition[rows]
        first_offset[new] = offset[rows]
        self._add(
            Keys(
                h1[new],
                h2[new],
                first_partition[new],
                first_offset[new],
                np.zeros(len(rows), np.int32),
                self._runs[0].batches,
            )
        )
        again = ~first | ~new[group]
        return self._found(order, group, again, number, first_partition, first_offset)

    def added(self) -> Keys:
        """The keys that `mark` added: what this batch's key file holds."""
        self._runs = [_joined(self._runs)]
        return self._runs[0]

    def _add(self, keys: Keys) -> None:
        """Appends a run and merges those that became too short for the one behind them."""
        self._runs.append(keys)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs[-2:] = [_joined(self._runs[-2:])]

    def _look_up(self, h1: Words, h2: Words) -> tuple[Ints, Ints, Longs]:
        """For sorted distinct keys: the first record's batch (-1: unseen), partition, offset."""
        number = np.full(len(h1), -1, np.int32)
        partition = np.zeros(len(h1), np.int32)
        offset = np.zeros(len(h1), np.int64)
        for file, keys in self._parts():
            low = np.searchsorted(h1, keys.h1[0])
            high = np.searchsorted(h1, keys.h1[-1], side="right")
            if low == high:
                continue
            probe, place = _matches(keys, h1[low:high], h2[low:high])
            if file is not None and len(probe):
                probe, place = _without(keys, probe, place, self._void(file))
            probe += low
            unseen = number[probe] < 0
            probe, place = probe[unseen], place[unseen]
            if len(probe):
                number[probe] = self._numbered(keys, place)
                partition[probe] = keys.partition[place]
                offset[probe] = keys.offset[place]
        return number, partition, offset

    def _parts(self) -> Iterator[tuple[int | None, Keys]]:
        """Everything to search, none of it empty, and the file it is of (None: this batch)."""
        for number, segments in enumerate(self._files):
            for keys in segments:
                yield number, keys
        yield from ((None, keys) for keys in self._runs if len(keys))

    def _void(self, file: int) -> Mask:
        """Which of a file's batches do not count."""
        mask = self._void_masks.get(file)
        if mask is None:
            void = pc.is_in(self._files[file][0].batches, value_set=self._void_batches)
            mask = self._void_masks[file] = void.to_numpy(zero_copy_only=False)
        return mask

    def _numbered(self, keys: Keys, place: Places) -> Ints:
        """The batches of these keys, by number."""
        used, inverse = np.unique(keys.batch[place], return_inverse=True)
        names = keys.batches.take(pa.array(used)).to_pylist()
        numbers = [self._numbers.setdefault(name, len(self._numbers)) for name in names]
        return np.array(numbers, np.int32)[inverse]

    def _found(
        self,
        order: Places,
        group: Places,
        duplicate: Mask,
        number: Ints,
        partition: Ints,
        offset: Longs,
    ) -> Found:
        """Spreads what is known of distinct keys over the rows, and puts these in order."""
        rows = order[duplicate]
        back = np.argsort(rows)
        key = group[duplicate][back]
        names = pa.array(list(self._numbers), pa.string())
        return Found(rows[back], names.take(pa.array(number[key])), partition[key], offset[key])


def _distinct(h1: Words, h2: Words) -> tuple[Places, Mask, Places]:
    """The sorted order; where in it a key stands first; the number of its key for each."""
    order = _order(h1, h2)
    h1, h2 = h1[order], h2[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (h1[1:] != h1[:-1]) | (h2[1:] != h2[:-1])
    return order, first, np.cumsum(first) - 1


def _matches(keys: Keys, h1: Words, h2: Words) -> tuple[Places, Places]:
    """Which of the sorted probes are in `keys`, and the first place of each there."""
    last = len(keys) - 1
    if len(h1) <= len(keys):
        place = np.searchsorted(keys.h1, h1)
        probe = np.flatnonzero(keys.h1[np.minimum(place, last)] == h1)
    else:
        # Fewer keys than probes: look the keys up among the probes instead.
        place = np.searchsorted(h1, keys.h1)
        met = np.unique(keys.h1[h1[np.minimum(place, len(h1) - 1)] == keys.h1])
        start = np.searchsorted(h1, met)
        probe = _spans(start, np.searchsorted(h1, met, side="right"))
    low = np.searchsorted(keys.h1, h1[probe])
    end = np.searchsorted(keys.h1, h1[probe], side="right")
    want = h2[probe]
    high = end.copy()
    # Bisection by h2 among equal h1: cheap even when a client forges thousands of them.
    while (between := low < high).any():
        middle = (low + high) // 2
        less = between & (keys.h2[np.minimum(middle, last)] < want)
        low = np.where(less, middle + 1, low)
        high = np.where(between & ~less, middle, high)
    hit = (low < end) & (keys.h2[np.minimum(low, last)] == want)
    return probe[hit], low[hit]


def _without(keys: Keys, probe: Places, place: Places, void: Mask) -> tuple[Places, Places]:
    """Passes over hits on void batches: the same key of another batch may stand behind."""
    while (skip := void[keys.batch[place]]).any():
        after = np.where(skip, place + 1, place)
        inside = np.minimum(after, len(keys) - 1)
        stays = (after == place) | (
            (after < len(keys))
            & (keys.h1[inside] == keys.h1[place])
            & (keys.h2[inside] == keys.h2[place])
        )
        probe, place = probe[stays], after[stays]
    return probe, place


def _spans(start: Places, stop: Places) -> Places:
    """All the integers of the half-open spans, one span after the other."""
    length = stop - start
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(length.sum())


def open_key_file(filesystem: fs.FileSystem, path: str) -> list[Keys]:
    """A key file's segments, in order, none of them empty."""
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
    except (OSError, pa.ArrowInvalid) as error:
        raise KeyFileUnreadable(path, str(error)) from error
    if not batches:
        return []
    names = batches[0]["batch"].dictionary
    return [_of_record_batch(batch, names) for batch in batches if batch.num_rows]


def write_key_file(filesystem: fs.FileSystem, path: str, keys: Keys) -> int:
    """Writes one batch's keys (`SeenKeys.added`); returns their number. Same keys, same bytes."""
    return _write(filesystem, path, keys.batches, [keys])


def merge_key_files(filesystem: fs.FileSystem, paths: Sequence[str], target: str) -> int:
    """Writes the keys of several files, oldest first, as one; returns their number.

    The inputs stay: the caller drops them once the ledger names `target` in their place.
    Memory: about 150 bytes for each of `SEGMENT_ROWS` keys at a time, whatever the files'
    size; beyond a local lake also the inputs themselves.
    """
    files = [file for path in paths if (file := open_key_file(filesystem, path))]
    names = pa.concat_arrays([file[0].batches for file in files] or [_NO_NAMES]).unique()
    inputs: list[tuple[Keys, Ints]] = []  # a segment, and its batches' numbers in the target
    for file in files:
        numbers = pc.index_in(file[0].batches, value_set=names).to_numpy()
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
            part = keys.rows(end[number], end[number + 1])
            parts.append(replace(part, batch=numbers[part.batch], batches=names))
        yield _joined(parts)


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


def _no_keys(batches: pa.StringArray) -> Keys:
    """The empty set of this batch or these."""
    words, ints = np.empty(0, np.uint64), np.empty(0, np.int32)
    return Keys(words, words, ints, np.empty(0, np.int64), ints, batches)


_NO_NAMES = pa.array([], pa.string())


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
    temporary = Path(f"{local}.{uuid4().hex}.tmp")
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
