"""Rebuilds: a date's partition of `events` made anew, and how far that has come.

    filling ─▶ keeping ─▶ swapping ─▶ swapped ─▶ returning ─▶ returned
       └─▶ cancelled └─▶ returned (cancelled: nothing was replaced)

Each step is a compare-and-swap under the rebuild's lease and, from `keeping` on, the topics' lease
as well. A crash leaves the state before; what was filled by then is found by proof, not from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from assets.pipeline.errors import BatchError
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.tables import rebuilds


class Way(StrEnum):
    """What a rebuild makes the partition of."""

    REBUILD = "rebuild"  # the staged files as they are
    REENRICH = "re-enrich"  # staged files made anew with today's code, from what they hold
    REPLAY = "replay"  # staged files that the lake has lost made anew from Kafka

    @property
    def keeps_files(self) -> bool:
        """Whether the old files are kept, to be brought back: those that were lost are not."""
        return self is Way.REENRICH


class RebuildState(StrEnum):
    """How far a rebuild has come."""

    FILLING = "filling"  # new files are made, if need be; staged files go into the shadow table
    KEEPING = "keeping"  # the partition as it is is being kept aside
    SWAPPING = "swapping"  # it is kept; the shadow takes its place
    SWAPPED = "swapped"
    RETURNING = "returning"  # what was kept takes the place again
    RETURNED = "returned"
    CANCELLED = "cancelled"


OPEN = (
    RebuildState.FILLING,
    RebuildState.KEEPING,
    RebuildState.SWAPPING,
    RebuildState.RETURNING,
)
"""States that somebody has to carry on."""

MOVING = (RebuildState.KEEPING, RebuildState.SWAPPING, RebuildState.RETURNING)
"""States in which a partition may take another's place."""


@dataclass(frozen=True)
class Rebuild:
    """One rebuild. Times are µs; `run_id` is of whoever began it.

    `generation` is that of the rows of files which it makes anew, if it makes any.
    """

    rebuild_id: int
    topic: str
    arrival_date: date
    state: RebuildState
    run_id: str
    begun_at: int
    moved_at: int
    batches: int | None
    rows: int | None
    way: Way = Way.REBUILD
    generation: int | None = None

    @property
    def makes_files(self) -> bool:
        """Whether it makes staged files anew."""
        return self.way is not Way.REBUILD


def begin(
    ledger: Engine,
    lease: Lease,
    topic: str,
    arrival_date: date,
    run_id: str,
    way: Way = Way.REBUILD,
    generation: int | None = None,
) -> Rebuild:
    """A new rebuild of a date. The caller has seen that none is open."""
    now = now_us()
    with ledger.begin() as connection:
        check_fence(connection, lease)
        found = connection.execute(
            insert(rebuilds)
            .values(
                topic=topic,
                arrival_date=arrival_date,
                state=RebuildState.FILLING,
                run_id=run_id,
                begun_at=now,
                moved_at=now,
                way=way,
                generation=generation,
            )
            .returning(*rebuilds.c)
        ).one()
    return _rebuild(found)


def move(
    ledger: Engine,
    leases: tuple[Lease, ...],
    rebuild: Rebuild,
    to: RebuildState,
    also: Callable[[Connection], None] = lambda connection: None,
    **values: int,
) -> Rebuild:
    """Take a rebuild on, from the state it was read in. Raises BatchError when it has moved.

    `also` writes in the same transaction.
    """
    with ledger.begin() as connection:
        for lease in leases:
            check_fence(connection, lease)
        found = connection.execute(
            update(rebuilds)
            .where(
                rebuilds.c.rebuild_id == rebuild.rebuild_id,
                rebuilds.c.state == rebuild.state,
            )
            .values(state=to, moved_at=now_us(), **values)
            .returning(*rebuilds.c)
        ).one_or_none()
        if found is None:
            raise BatchError(
                f"the rebuild of {rebuild.arrival_date} is no longer {rebuild.state}: somebody "
                "else has taken it on; see `tidemark backfill list`"
            )
        also(connection)
    return _rebuild(found)


def last_rebuild(
    ledger: Engine, topic: str, arrival_date: date, but: RebuildState | None = None
) -> Rebuild | None:
    """The newest rebuild of a date, however it stands `but` so."""
    with reading(ledger) as connection:
        row = connection.execute(
            select(rebuilds)
            .where(
                rebuilds.c.topic == topic,
                rebuilds.c.arrival_date == arrival_date,
                rebuilds.c.state != (but or ""),
            )
            .order_by(rebuilds.c.rebuild_id.desc())
            .limit(1)
        ).one_or_none()
    return None if row is None else _rebuild(row)


def all_rebuilds(ledger: Engine, topic: str) -> list[Rebuild]:
    """Every rebuild there was, the newest first."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(rebuilds).where(rebuilds.c.topic == topic).order_by(rebuilds.c.rebuild_id.desc())
        ).all()
    return [_rebuild(row) for row in rows]


def _rebuild(row: Any) -> Rebuild:
    values = dict(row._mapping)
    return Rebuild(**{**values, "state": RebuildState(values["state"]), "way": Way(values["way"])})
