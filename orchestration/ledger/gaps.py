"""Gaps: what of a batch was lost before it was loaded, and what a person has decided of it.

    found ─┬─ accepted ─▶ planned or loading, the loss counted as `lost` in the balance
           ├─ refused ──▶ failed
           ├─ retried ──▶ planned or loading: it is looked for again
           ├─ discarded ▶ superseded: its import was thrown away
           └─ given up ─▶ superseded, a redrive: its letters can be chosen again

Invariant: a gap is decided once, in the transaction that moves its batch, and its row stays as long
as that. Should the batch meet its gap once more, that is another row.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from assets.pipeline.batch import Batch, Kind, Range, State
from assets.pipeline.errors import BatchError
from orchestration.ledger.batches import move
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.decisions import Decision
from orchestration.ledger.keys import KeySwap, swap_key_files
from orchestration.ledger.leases import Lease
from orchestration.ledger.of_topics import of_topics
from orchestration.ledger.tables import (
    batches,
    fingerprints,
    gaps,
    ranges,
    rejections,
    staged_files,
)

_AGAIN: dict[str, Any] = {"note": "", "retries": batches.c.retries + 1}
"""Given back by a person: ClickHouse may remember the token under which its rows were before."""

KAFKA = "kafka"
"""Kafka has no longer what was planned."""

IMPORT = "import"
"""The file of an import is gone, by a person's word, and what was planned of it with it."""

UNREAD = (KAFKA, IMPORT)
"""Causes that lose offsets before they were read. Every other one is the kind of a staged file."""


@dataclass(frozen=True)
class Gap:
    """One loss. `lost` are ranges of offsets, or the path of a file; times are µs.

    `decision` and what goes with it is None while it waits for a person.
    """

    gap_id: int
    batch_id: str
    cause: str
    lost: str
    records: int
    note: str
    found_at: int
    decision: str | None = None
    why: str | None = None
    decided_by: str | None = None
    decided_at: int | None = None


_COLUMNS = tuple(gaps.c[field.name] for field in fields(Gap))


def gap_found(
    ledger: Engine, lease: Lease, batch_id: str, cause: str, lost: str, records: int, note: str
) -> None:
    """Move a batch to `gap`, with a row that says what is lost."""
    with ledger.begin() as connection:
        told = f"{note}. `tidemark gaps` shows what can be decided"
        move(connection, lease, batch_id, State.GAP, note=told)
        connection.execute(
            insert(gaps).values(
                batch_id=batch_id,
                cause=cause,
                lost=lost,
                records=records,
                note=note,
                found_at=now_us(),
            )
        )


def all_gaps(ledger: Engine, *topics: str) -> list[Gap]:
    """Every gap of these topics that was ever found, the oldest first."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(*_COLUMNS)
            .join(batches, batches.c.batch_id == gaps.c.batch_id)
            .where(of_topics(topics))
            .order_by(gaps.c.gap_id)
        ).all()
    return [Gap(**row._mapping) for row in rows]


def read_gap(ledger: Engine, gap_id: int) -> Gap:
    """One gap. Raises BatchError when there is none of that id."""
    with reading(ledger) as connection:
        row = connection.execute(select(*_COLUMNS).where(gaps.c.gap_id == gap_id)).one_or_none()
    if row is None:
        raise BatchError(f"there is no gap {gap_id}: see `tidemark gaps`")
    return Gap(**row._mapping)


def accept_lost_offsets(
    ledger: Engine,
    lease: Lease,
    gap: Gap,
    batch: Batch,
    skips: Mapping[int, int],
    why: str,
    note: str,
) -> None:
    """Plan the batch again, without what lies below these offsets, per partition."""
    lost = lost_ranges(batch, skips)
    spans, records = ", ".join(map(str, lost)), sum(map(len, lost))
    with ledger.begin() as connection:
        _decide(connection, gap, Decision.ACCEPTED, why, lost=spans, records=records, note=note)
        move(connection, lease, batch.batch_id, State.PLANNED, only_from=State.GAP, **_AGAIN)
        for partition, skip_to in skips.items():
            connection.execute(
                update(ranges)
                .where(ranges.c.batch_id == batch.batch_id, ranges.c.partition == partition)
                .values(skip_to=skip_to)
            )


def lost_ranges(batch: Batch, skips: Mapping[int, int]) -> list[Range]:
    """What of a batch lies below these offsets, per partition."""
    ends = {r: min(skips.get(r.partition, r.start), r.end) for r in batch.ranges}
    return [Range(r.partition, r.start, end) for r, end in ends.items() if end > r.start]


def accept_lost_file(
    ledger: Engine, lease: Lease, gap: Gap, index: KeySwap, why: str, note: str
) -> None:
    """Carry the batch on without one of its files, whose records count as lost.

    The index of duplicates, which has to forget a file of events, changes with it.
    """
    count = ranges.c.ok if gap.cause == Kind.EVENTS else ranges.c.rejected
    of_batch = ranges.c.batch_id == gap.batch_id
    with ledger.begin() as connection:
        _decide(connection, gap, Decision.ACCEPTED, why, note=note)
        move(connection, lease, gap.batch_id, State.LOADING, only_from=State.GAP, **_AGAIN)
        connection.execute(
            update(ranges)
            .where(of_batch)
            .values({"lost": func.coalesce(ranges.c.lost, 0) + count, count.name: 0})
        )
        for table in (staged_files, fingerprints):
            connection.execute(
                delete(table).where(table.c.batch_id == gap.batch_id, table.c.kind == gap.cause)
            )
        if gap.cause == Kind.DEAD_LETTERS:
            connection.execute(delete(rejections).where(rejections.c.batch_id == gap.batch_id))
        swap_key_files(connection, index)


def refuse(ledger: Engine, lease: Lease, gap: Gap, why: str) -> None:
    """Let the batch be `failed`: nothing of it is loaded."""
    with ledger.begin() as connection:
        _decide(connection, gap, Decision.REFUSED, why)
        note = f"gap {gap.gap_id} was refused ({why}): {gap.note}"
        move(connection, lease, gap.batch_id, State.FAILED, only_from=State.GAP, note=note)


def _decide(
    connection: Connection, gap: Gap, decision: Decision, why: str, **values: object
) -> None:
    decided = connection.execute(
        update(gaps)
        .where(gaps.c.gap_id == gap.gap_id, gaps.c.decision.is_(None))
        .values(
            decision=decision,
            why=why,
            decided_by=getpass.getuser(),
            decided_at=now_us(),
            **values,
        )
    )
    if decided.rowcount != 1:
        raise BatchError(f"gap {gap.gap_id} was decided already: see `tidemark gaps`")
