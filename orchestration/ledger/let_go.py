"""What housekeeping lets go of: marked here first, deleted then, and noted as deleted.

    in use ─▶ let_go_at: nobody reads it any more ─▶ deleted from the lake ─▶ deleted_at

A date's files of a kind are marked in one transaction, which looks once more at every batch of the
date, and holds their rows: what gives a batch back to the workers, or carries its dead letters on,
comes before it and is seen, or after it and sees the marks. A crash leaves marked files, which the
next run deletes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    case,
    func,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from assets.pipeline.batch import Kind, State
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.of_topics import of_topics
from orchestration.ledger.tables import batches, staged_files

_FILES_AT_ONCE = 200


@dataclass(frozen=True)
class Settled:
    """A batch as housekeeping looks at it. `settled_at` (µs) is None while it is not done with."""

    batch_id: str
    state: State
    settled_at: int | None


@dataclass(frozen=True)
class MarkedFile:
    """A file that was let go of and is to be deleted."""

    batch_id: str
    kind: Kind
    path: str
    rows: int
    bytes: int
    arrival_date: date


@dataclass(frozen=True)
class KeptFiles:
    """How many files there are, how many rows and bytes they have."""

    count: int
    rows: int
    bytes: int


def has_let_go(connection: Connection, batch_ids: Any, kind: Kind) -> bool:
    """Whether one of these batches, a list or a query, has no file of a kind any more."""
    found = connection.scalar(
        select(staged_files.c.batch_id)
        .where(
            staged_files.c.batch_id.in_(batch_ids),
            staged_files.c.kind == kind,
            staged_files.c.let_go_at.is_not(None),
        )
        .limit(1)
    )
    return found is not None


def has_let_go_of_rows(connection: Connection, batch_id: str) -> bool:
    """Whether the rows of a batch in `events` were let go of."""
    found = connection.scalar(
        select(batches.c.rows_let_go_at).where(batches.c.batch_id == batch_id)
    )
    return found is not None


def let_go_of_rows(
    ledger: Engine,
    leases: Sequence[Lease],
    day: date,
    judged: Collection[Settled],
    *topics: str,
) -> bool:
    """Mark the rows of a date's batches as let go of. False, as `let_go_of_date`."""
    with ledger.begin() as connection:
        for lease in leases:
            check_fence(connection, lease)
        if not _is_as_judged(connection, day, topics, judged):
            return False
        connection.execute(
            update(batches)
            .where(_is_of(day, topics), batches.c.rows_let_go_at.is_(None))
            .values(rows_let_go_at=now_us())
        )
    return True


def are_rows_let_go(ledger: Engine, day: date, *topics: str) -> bool:
    """Whether rows of a date were let go of."""
    with reading(ledger) as connection:
        found = connection.scalar(
            select(batches.c.batch_id)
            .where(_is_of(day, topics), batches.c.rows_let_go_at.is_not(None))
            .limit(1)
        )
    return found is not None


def rows_are_back(ledger: Engine, lease: Lease, day: date, *topics: str) -> None:
    """A rebuild has made a date anew: its batches are proved and audited again."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        connection.execute(
            update(batches)
            .where(_is_of(day, topics), batches.c.rows_let_go_at.is_not(None))
            .values(rows_let_go_at=None)
        )


def _is_of(day: date, topics: Iterable[str]) -> ColumnElement[bool]:
    return and_(of_topics(list(topics)), batches.c.arrival_date == day)


def dates_with_files(
    ledger: Engine, before: date, kinds: Sequence[Kind], *topics: str
) -> list[date]:
    """Arrival dates before that one of which files of these kinds are kept, the oldest first."""
    with reading(ledger) as connection:
        return list(
            connection.scalars(
                select(batches.c.arrival_date)
                .distinct()
                .join(staged_files, staged_files.c.batch_id == batches.c.batch_id)
                .where(
                    of_topics(topics),
                    batches.c.arrival_date < before,
                    staged_files.c.kind.in_(kinds),
                    staged_files.c.let_go_at.is_(None),
                )
                .order_by(batches.c.arrival_date)
            )
        )


def batches_to_judge(ledger: Engine, day: date, *topics: str) -> list[Settled]:
    """Every batch of a date, and whether anything is to be done about it yet."""
    with reading(ledger) as connection:
        return _of_date(connection, day, topics, lock=False)


def kept_files(ledger: Engine, day: date, kinds: Sequence[Kind], *topics: str) -> KeptFiles:
    """The files of a date, of these kinds, that are not let go of."""
    of_date = select(batches.c.batch_id).where(of_topics(topics), batches.c.arrival_date == day)
    with reading(ledger) as connection:
        row = connection.execute(
            select(
                func.count(),
                func.coalesce(func.sum(staged_files.c.rows), 0),
                func.coalesce(func.sum(staged_files.c.bytes), 0),
            ).where(
                staged_files.c.batch_id.in_(of_date),
                staged_files.c.kind.in_(kinds),
                staged_files.c.let_go_at.is_(None),
            )
        ).one()
    return KeptFiles(*map(int, row))


def let_go_of_date(
    ledger: Engine,
    lease: Lease,
    day: date,
    kinds: Sequence[Kind],
    judged: Collection[Settled],
    *topics: str,
) -> bool:
    """Mark a date's files of these kinds. False, and nothing is marked, when the date has changed.

    `judged` are its batches, of which all is proved, as they were then.
    """
    with ledger.begin() as connection:
        check_fence(connection, lease)
        if not _is_as_judged(connection, day, topics, judged):
            return False
        ids = [batch.batch_id for batch in judged]
        for at in range(0, len(ids), _FILES_AT_ONCE):
            connection.execute(
                update(staged_files)
                .where(
                    staged_files.c.batch_id.in_(ids[at : at + _FILES_AT_ONCE]),
                    staged_files.c.kind.in_(kinds),
                    staged_files.c.let_go_at.is_(None),
                )
                .values(let_go_at=now_us())
            )
    return True


def marked_files(
    ledger: Engine, limit: int, kinds: Sequence[Kind], *topics: str
) -> list[MarkedFile]:
    """Some of the files of these kinds that are marked and not noted as deleted, date by date."""
    columns = staged_files.c
    with reading(ledger) as connection:
        rows = connection.execute(
            select(
                *(columns.batch_id, columns.kind, columns.path, columns.rows, columns.bytes),
                batches.c.arrival_date,
            )
            .join(batches, batches.c.batch_id == columns.batch_id)
            .where(
                # Not by the index of topics: SQLite would look at every batch of them for a file.
                of_topics(topics, batches.c.topic + ""),
                columns.kind.in_(kinds),
                columns.let_go_at.is_not(None),
                columns.deleted_at.is_(None),
            )
            .order_by(batches.c.arrival_date, columns.batch_id)
            .limit(limit)
        ).all()
    return [MarkedFile(row[0], Kind(row[1]), *row[2:]) for row in rows]


def note_deleted(ledger: Engine, files: Sequence[MarkedFile]) -> None:
    """Note that these files are gone."""
    with ledger.begin() as connection:
        for at in range(0, len(files), _FILES_AT_ONCE):
            some = [(file.batch_id, file.kind.value) for file in files[at : at + _FILES_AT_ONCE]]
            connection.execute(
                update(staged_files)
                .where(tuple_(staged_files.c.batch_id, staged_files.c.kind).in_(some))
                .values(deleted_at=now_us())
            )


def is_unsettled(connection: Connection, first: date, last: date) -> bool:
    """Whether a batch of these arrival dates, of any topic, is not done with."""
    found = connection.scalar(
        select(batches.c.batch_id)
        .where(
            batches.c.arrival_date.between(first, last),
            not_(done_with()),
        )
        .limit(1)
    )
    return found is not None


def was_settled_since(ledger: Engine, day: date, since: int) -> bool:
    """Whether a batch of a date, of any topic, was done with at that time (µs) or later."""
    with reading(ledger) as connection:
        found = connection.scalar(
            select(batches.c.batch_id)
            .where(batches.c.arrival_date == day, _settled_at() >= since)
            .limit(1)
        )
    return found is not None


def done_with() -> ColumnElement[bool]:
    """That nothing is to be done about a batch any more: it is loaded, all of it, or given up."""
    is_loaded = and_(
        batches.c.state == State.COMMITTED, batches.c.dead_letters_loaded_at.is_not(None)
    )
    return or_(batches.c.state == State.SUPERSEDED, is_loaded)


def _is_as_judged(
    connection: Connection, day: date, topics: Iterable[str], judged: Collection[Settled]
) -> bool:
    """Whether a date's batches, whose rows are held from here on, are what they were then."""
    _of_date(connection, day, topics, lock=True)
    # PostgreSQL shows a statement that had to wait no rows that came meanwhile: a redrive's, say.
    return set(_of_date(connection, day, topics, lock=False)) == set(judged)


def _of_date(connection: Connection, day: date, topics: Iterable[str], lock: bool) -> list[Settled]:
    query = (
        select(batches.c.batch_id, batches.c.state, _settled_at())
        .where(of_topics(list(topics)), batches.c.arrival_date == day)
        .order_by(batches.c.planned_at, batches.c.batch_id)
    )
    rows = connection.execute(query.with_for_update() if lock else query).all()
    return [Settled(batch_id, State(state), settled_at) for batch_id, state, settled_at in rows]


def _settled_at() -> Any:
    """When a batch was done with; a batch that was given up is so since it was planned."""
    return case(
        (batches.c.state == State.SUPERSEDED, batches.c.planned_at),
        (batches.c.state == State.COMMITTED, batches.c.dead_letters_loaded_at),
        else_=None,
    )
