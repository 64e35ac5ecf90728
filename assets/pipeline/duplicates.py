"""Which (project, uuid) was seen before: one answer for a batch, over the window's key files.

    uuid, project ─key_columns─▶ h1, h2 ─SeenKeys.mark─▶ Found: which rows are duplicates, of what
                                            │   ▲
                     this batch's new keys ─┘   └─ the key files of the window (key_files.py)
                              │
                              └─write_key_file─▶ this batch's own key file

Invariants: a record is never the duplicate of itself: hits in the files on the current batch
(staged once before, then a crash) do not count. Probes cost by their number, not by the size of
the set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from assets.pipeline.key_files import (
    Ints,
    Keys,
    Longs,
    Places,
    Words,
    joined,
    no_keys,
    open_key_file,
    places_in_order,
)

Mask = npt.NDArray[np.bool_]


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


class Firsts(Protocol):
    """What staging asks: which records repeat an earlier one, and which keys are new by it."""

    def mark(self, h1: Words, h2: Words, partition: Ints, offset: Longs) -> Found:
        """The rows whose key was seen before; adds the other keys."""

    def added(self) -> Keys:
        """The keys that `mark` added."""


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
        self._runs = [no_keys(pa.array([batch_id], pa.string()))]
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
        self._runs = [joined(self._runs)]
        return self._runs[0]

    def _add(self, keys: Keys) -> None:
        """Appends a run and merges those that became too short for the one behind them."""
        self._runs.append(keys)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs[-2:] = [joined(self._runs[-2:])]

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
    order = places_in_order(h1, h2)
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
