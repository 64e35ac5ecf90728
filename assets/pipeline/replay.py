"""Replay: the files of a batch made again from Kafka, where the lake has lost them.

    registered file, missing or damaged ─▶ its ranges in Kafka ─┬─ expired ─▶ left, told
                                                                └─▶ read, judged, written
                                                                       │
             the balance and the fingerprints are those registered ◀───┴──▶ they differ: left, told

A replay changes no verdict. What is an event, a dead letter, a duplicate is on record, ClickHouse
was proved by it and other batches' duplicates name its rows: so the new files count only if they
hold the very same offsets. An event is one again if the index of duplicates says that it was the
first, at that place; so a repetition in the same batch, or one that came since, changes nothing.
Where code, or what the index knows, has changed so that a record comes out otherwise, the batch is
left as it is: no event is lost by that, and none doubled.

Rows keep their generation: it is the lost file that is back. Keys that the index had lost, too,
come back with the batch. Memory is that of staging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.pipeline.batch import Balance, Batch, KeyFile, Kind, Range, Staged, StagedFile
from assets.pipeline.clock import StageClock
from assets.pipeline.duplicates import Found
from assets.pipeline.errors import BatchError, Gap, StagedFileDamaged, TopicReplaced
from assets.pipeline.garbage import searched_rarely
from assets.pipeline.key_files import Ints, Keys, Longs, Words
from assets.pipeline.lake import Lake
from assets.pipeline.read import check_readable, lost_below, read_ranges
from assets.pipeline.stage import stage
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import Worker


class NotReplayed(BatchError):
    """A batch that cannot be replayed: its files and its rows stay as they are."""


@dataclass(frozen=True)
class Expiry:
    """What Kafka still has of a range of a batch: offsets from `there` on."""

    range: Range
    there: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it has expired."""
        return self.there <= self.range.start

    def __str__(self) -> str:
        if self.is_whole:
            return f"{self.range} is in Kafka"
        gone = Range(self.range.partition, self.range.start, self.there)
        return f"{gone} of {self.range} has expired"


def lost_kinds(lake: Lake, batch: Batch) -> dict[Kind, str]:
    """Which files of a batch are missing or damaged, and what is wrong with each.

    What housekeeping let go of is not lost.
    """
    lost = {}
    for file in batch.staged.files if batch.staged else ():
        if file.let_go_at is not None:
            continue
        try:
            lake.check(file.path, file.bytes, file.sha256)
        except StagedFileDamaged as error:
            lost[file.kind] = str(error)
    return lost


def expiries(worker: Worker, batch: Batch) -> list[Expiry]:
    """What Kafka still has of each range of a batch."""
    ranges = [each for each in batch.readable if len(each)]
    there = lost_below(worker.topic_of(batch), batch.topic_id, ranges)
    return [Expiry(each, there[each.partition]) for each in ranges]


def replayed(
    worker: Worker,
    batch: Batch,
    path_of: Callable[[str, str], str],
    may_publish: Callable[[], None],
) -> tuple[Staged, KeyFile | None]:
    """Write all files of a batch again, where `path_of` says for a kind and a suffix.

    Also the key file of what the index had lost. Raises NotReplayed, and leaves no file behind,
    unless everything comes out as it is registered.
    """
    if batch.is_redrive:
        raise NotReplayed(
            f"batch {batch.batch_id} is a redrive, whose records come from dead letters and not "
            "from Kafka: bring its file back"
        )
    if batch.is_import:
        raise NotReplayed(
            f"batch {batch.batch_id} is of {batch.topic}, whose records come from a file and not "
            "from Kafka: bring its file in the lake back"
        )
    lake = worker.lake
    try:
        check_readable(worker.topic_of(batch), batch.topic_id, batch.readable)
        with searched_rarely():
            staged, key_file = stage(
                replace(batch, code_version=TRANSFORM_VERSION),
                read_ranges(worker.settings.kafka_client, batch.topic, batch.readable),
                lake,
                _FirstsStay(worker, batch),
                StageClock(),
                may_publish=may_publish,
                path_of=path_of,
            )
    except (Gap, TopicReplaced) as gone:
        raise NotReplayed(f"batch {batch.batch_id} is not in Kafka any more: {gone}") from gone
    finally:
        pa.default_memory_pool().release_unused()
    difference = _difference(batch, staged)
    if difference:
        for path in [*(file.path for file in staged.files), *([key_file.path] if key_file else [])]:
            lake.delete(path)
        raise NotReplayed(
            f"batch {batch.batch_id} would not come out as it was loaded ({difference}): its rows "
            "stay, and what they were counted as"
        )
    return staged, key_file


def registered_kinds(batch: Batch) -> set[Kind]:
    """The kinds of files that a batch has, and housekeeping has not let go of."""
    files = batch.staged.files if batch.staged else ()
    return {file.kind for file in files if file.let_go_at is None}


def _difference(batch: Batch, made: Staged) -> str:
    """How what was made differs from what is registered; empty when it does not."""
    assert batch.staged is not None
    was = batch.staged
    for range_ in batch.ranges:
        before, after = was.balances[range_.partition], made.balances[range_.partition]
        if replace(before, redriven=0) != after:
            return f"partition {range_.partition}: {_counts(before)} then, {_counts(after)} now"
    for kind in (Kind.EVENTS, Kind.DEAD_LETTERS):
        if was.fingerprints.get(kind, ()) != made.fingerprints.get(kind, ()):
            return f"other offsets are {kind.replace('_', ' ')}"
    if _rows(was.files) != _rows(made.files):
        return "its files have other rows"
    return ""


def _counts(balance: Balance) -> str:
    return (
        f"{balance.ok:,} ok, {balance.rejected:,} rejected, {balance.duplicate:,} duplicate, "
        f"{balance.tombstone:,} tombstone, {balance.absent:,} absent"
    )


def _rows(files: Sequence[StagedFile]) -> dict[Kind, int]:
    return {file.kind: file.rows for file in files}


class _FirstsStay:
    """The index as a batch is replayed: its own keys count, and a record at a key's place is it."""

    def __init__(self, worker: Worker, batch: Batch) -> None:
        self._own = batch.batch_id
        stand_in = f"{batch.batch_id} replayed"
        self._seen = worker.index_for(replace(batch, batch_id=stand_in))
        self._stand_in = stand_in

    def mark(self, h1: Words, h2: Words, partition: Ints, offset: Longs) -> Found:
        """As in staging, but for the records that were the first already."""
        found = self._seen.mark(h1, h2, partition, offset)
        names = pc.replace_substring(found.batch_id, self._stand_in, self._own)
        is_own = pc.equal(names, self._own).to_numpy(zero_copy_only=False)
        is_first = (
            is_own
            & (found.partition == partition[found.rows])
            & (found.offset == offset[found.rows])
        )
        again = np.flatnonzero(~is_first)
        return Found(
            found.rows[again],
            names.take(pa.array(again)),
            found.partition[again],
            found.offset[again],
        )

    def added(self) -> Keys:
        """Keys of the batch that the index had lost, under its own name."""
        keys = self._seen.added()
        return replace(keys, batches=pa.array([self._own], pa.string()))
