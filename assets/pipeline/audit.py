"""Audit: hold batches that were loaded, however long ago, against what is there now.

    unbalanced    do the records of each batch add up to the offsets it spans?
    untiled       do the ranges of consecutive batches follow each other, lane by lane?
    reprove       does ClickHouse hold exactly the rows that were staged? By sums, in one granule
    compare       the same row by row, which names offsets, and rows that were altered

Each gives findings, none when all is well. Nothing is changed or repaired here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from clickhouse_connect.driver.client import Client

from assets.pipeline.batch import LOADED, WAITING, Balance, Batch, Kind, Range, State
from assets.pipeline.compare_rows import PartitionDifference, compare_rows
from assets.pipeline.lake import Lake
from assets.pipeline.prove import describe_difference, read_fingerprints_of

LOADED_STATES = (*LOADED, State.SUSPECT)
"""States in which a batch's events are, or were meant to be, in ClickHouse."""

_NOTHING = (State.HELD, State.SUPERSEDED)
_ALL_OR_NOTHING = (State.FAILED, State.GAP)
"""States in which no worker loads a batch, and what ClickHouse may hold of it."""

_BATCHES_A_QUERY = 200


class Trouble(StrEnum):
    """What can be wrong with a batch that was loaded."""

    UNBALANCED = "unbalanced"
    MISSING = "missing"
    DIFFERENT = "different"
    ALTERED = "altered"  # the right offsets, but other columns: only rows show it
    UNEXPECTED = "unexpected"  # rows of a batch of which there are to be none, or all and no part
    FILE = "file"  # the staged file is missing or is not what was registered
    OVERLAP = "overlap"
    HOLE = "hole"
    HELD = "held"
    LANE = "lane"
    FAILING = "failing"  # not loaded yet, and tried again by itself for as long as it takes
    ROOM = "room"  # no more is planned
    STRANGE = "strange"  # rows of a batch that nobody knows


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in words that say where; `batch_id` is None for a whole lane.

    `partitions` names the offsets, where somebody has looked at the rows.
    """

    batch_id: str | None
    trouble: Trouble
    text: str
    kind: Kind | None = None
    partitions: tuple[PartitionDifference, ...] = ()

    def __str__(self) -> str:
        subject = f"batch {self.batch_id} {self.trouble}" if self.batch_id else self.trouble
        return f"{subject}: {self.text}"


def balance_of(batches: Iterable[Batch]) -> Balance:
    """How the offsets of all these batches came out together. Batches not staged count nothing.

    Nor do redrives: their records are counted where they were read, as rejected and redriven.
    """
    return sum(
        (batch.staged.balance for batch in batches if batch.staged and not batch.is_redrive),
        Balance(),
    )


def unbalanced(batches: Iterable[Batch]) -> list[Finding]:
    """Batches whose records do not add up to their offsets, and those that wait for a person."""
    findings = []
    for batch in batches:
        if batch.state in WAITING:
            text = batch.note if batch.state is State.HELD else f"{batch.state}: {batch.note}"
            findings.append(Finding(batch.batch_id, Trouble.HELD, text))
        if batch.staged is None:
            continue
        findings += [
            Finding(
                batch.batch_id,
                Trouble.UNBALANCED,
                f"{range_} spans {len(range_):,} offsets, {balance.offsets:,} are accounted for",
            )
            for range_ in batch.ranges
            if (balance := batch.staged.balances[range_.partition]).offsets != len(range_)
        ]
        rows = sum(print_.rows for print_ in batch.staged.fingerprints.get(Kind.EVENTS, ()))
        if rows != batch.staged.balance.ok:
            text = f"{batch.staged.balance.ok:,} records are ok, {rows:,} rows were staged"
            findings.append(Finding(batch.batch_id, Trouble.UNBALANCED, text))
    return findings


def untiled(batches: Iterable[Batch]) -> list[Finding]:
    """Where the ranges of batches that were planned one after the other leave a hole or overlap."""
    lanes: dict[tuple[str, str, int], list[tuple[Range, Batch]]] = defaultdict(list)
    for batch in batches:
        for range_ in batch.ranges:
            lane = (batch.cluster_id, batch.topic_id, range_.partition)
            lanes[lane].append((range_, batch))
    findings = []
    for lane_ranges in lanes.values():
        lane_ranges.sort(key=lambda pair: pair[0])
        for (one, _), (other, batch) in pairwise(lane_ranges):
            if other.start != one.end:
                trouble = Trouble.HOLE if other.start > one.end else Trouble.OVERLAP
                text = f"{other} follows {one} in {batch.topic}"
                findings.append(Finding(batch.batch_id, trouble, text))
    return findings


def reprove(
    client: Client, database: str, batches: Sequence[Batch], kinds: Iterable[Kind]
) -> list[Finding]:
    """Batches of which ClickHouse holds something else than was staged.

    Of a batch that was given up or is held it must hold nothing, of one that failed or is a gap
    nothing or all: a worker that slept may have inserted later. What workers are to load yet is
    left out, and what housekeeping has let go of.
    """
    findings = []
    for kind in kinds:
        due = [b for b in batches if _is_due(b, kind) or b.state in (*_ALL_OR_NOTHING, *_NOTHING)]
        for at in range(0, len(due), _BATCHES_A_QUERY):
            some = due[at : at + _BATCHES_A_QUERY]
            found = read_fingerprints_of(
                client, database, kind.value, [batch.batch_id for batch in some]
            )
            for batch in some:
                staged = batch.staged.fingerprints.get(kind, ()) if batch.staged else ()
                rows = found.get(batch.batch_id, ())
                if _is_due(batch, kind):
                    if rows == staged:
                        continue
                    trouble = Trouble.DIFFERENT if rows else Trouble.MISSING
                    text = f"in {database}.{kind}, {describe_difference(staged, rows)}"
                else:
                    if not rows or (rows == staged and batch.state in _ALL_OR_NOTHING):
                        continue
                    trouble, count = Trouble.UNEXPECTED, sum(print_.rows for print_ in rows)
                    text = f"{database}.{kind} has {count:,} rows of it, though it is {batch.state}"
                findings.append(Finding(batch.batch_id, trouble, text, kind))
    return findings


def compare(
    client: Client,
    database: str,
    lake: Lake,
    batches: Sequence[Batch],
    kinds: Iterable[Kind],
) -> list[Finding]:
    """The same by comparing rows with the lake's files, whose SHA-256 is checked first.

    Batches that are not loaded yet, and dead letters not loaded yet, are left out; so is what
    housekeeping has let go of, which sums still prove.
    """
    findings = []
    for kind in kinds:
        due = [
            batch
            for batch in batches
            if _is_due(batch, kind) and not (batch.staged and batch.staged.has_let_go(kind))
        ]
        for compared in compare_rows(client, database, lake, due, kind):
            batch_id, differences = compared.batch.batch_id, compared.partitions
            if compared.unreadable:
                text = f"{compared.unreadable}: its rows cannot be compared"
                findings.append(Finding(batch_id, Trouble.FILE, text, kind))
            elif differences:
                assert compared.batch.staged is not None
                file = compared.batch.staged.file(kind)
                missing = sum(difference.missing.count for difference in differences)
                is_found = any(d.extra or d.doubled or d.altered for d in differences)
                if file is not None and missing == file.rows and not is_found:
                    trouble = Trouble.MISSING
                elif all(d.altered and not (d.missing or d.extra) for d in differences):
                    trouble = Trouble.ALTERED
                else:
                    trouble = Trouble.DIFFERENT
                text = f"in {database}.{kind}, " + "; ".join(map(str, differences))
                findings.append(Finding(batch_id, trouble, text, kind, differences))
    return findings


def _is_due(batch: Batch, kind: Kind) -> bool:
    if batch.staged is None:
        return False
    if kind is Kind.EVENTS:
        return batch.state in LOADED_STATES and batch.rows_let_go_at is None
    return batch.dead_letters_loaded_at is not None and not batch.staged.has_let_go(kind)
