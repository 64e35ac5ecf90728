"""Which files make up the duplicate index (see assets/pipeline/duplicates.py).

    announced ─▶ written ─▶ live ─▶ retired ─▶ deleted in the lake ─▶ forgotten
        └───────────┴── never swapped in ────────▲

A file that is to take the place of others is announced before it is written, as one that is retired
already: whatever becomes of its writer, it is deleted in its time, unless it is swapped in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)

from assets.pipeline.batch import KeyFile
from assets.pipeline.errors import PlanConflict
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.let_go import is_unsettled
from orchestration.ledger.tables import key_files

_LIVE = and_(key_files.c.retired_at.is_(None), key_files.c.let_go_at.is_(None))


@dataclass(frozen=True)
class KeySwap:
    """Key files, and those that are to take their place."""

    before: tuple[KeyFile, ...] = ()
    after: tuple[KeyFile, ...] = ()


def live_key_files(ledger: Engine, first: date, last: date) -> list[KeyFile]:
    """The index files of the arrival dates from first to last, both included."""
    return _of_dates(ledger, first, last, key_files.c.let_go_at.is_(None))


def live_paths(connection: Connection, first: date, last: date) -> set[str]:
    """The same files' paths, in the caller's transaction."""
    of_dates = key_files.c.arrival_date.between(first, last)
    return set(connection.scalars(select(key_files.c.path).where(of_dates, _LIVE)))


def key_files_let_go(ledger: Engine, first: date, last: date) -> list[KeyFile]:
    """Files of the index that are gone, of these arrival dates, and not made anew since."""
    return _of_dates(ledger, first, last, key_files.c.let_go_at.is_not(None))


def _of_dates(ledger: Engine, first: date, last: date, which: ColumnElement[bool]) -> list[KeyFile]:
    """The files of these dates that were not replaced, and of which that holds."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(key_files.c.path, key_files.c.arrival_date, key_files.c.rows)
            .where(
                key_files.c.arrival_date.between(first, last),
                key_files.c.retired_at.is_(None),
                which,
            )
            .order_by(key_files.c.path)
        ).all()
    return [KeyFile(*row) for row in rows]


def dates_with_key_files(ledger: Engine, before: date) -> list[tuple[date, int, int]]:
    """Arrival dates before that one that have an index: its files and their rows."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(key_files.c.arrival_date, func.count(), func.sum(key_files.c.rows))
            .where(key_files.c.arrival_date < before, _LIVE)
            .group_by(key_files.c.arrival_date)
            .order_by(key_files.c.arrival_date)
        ).all()
    return [(day, int(count), int(keys)) for day, count, keys in rows]


def let_go_of_keys(ledger: Engine, day: date, reach: timedelta) -> bool:
    """Mark a date's files of the index. False when a batch so near may need them yet.

    A batch that is planned later finds the marks, and makes them anew.
    """
    with ledger.begin() as connection:
        if is_unsettled(connection, day - reach, day + reach):
            return False
        connection.execute(
            update(key_files)
            .where(key_files.c.arrival_date == day, _LIVE)
            .values(let_go_at=now_us())
        )
    return True


def has_unsettled_near(ledger: Engine, day: date, reach: timedelta) -> bool:
    """Whether a batch so near to a date may need its index yet."""
    with reading(ledger) as connection:
        return is_unsettled(connection, day - reach, day + reach)


def marked_key_files(ledger: Engine, limit: int) -> list[KeyFile]:
    """Some of the files of the index that are marked and not noted as deleted."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(key_files.c.path, key_files.c.arrival_date, key_files.c.rows)
            .where(key_files.c.let_go_at.is_not(None), key_files.c.deleted_at.is_(None))
            .order_by(key_files.c.path)
            .limit(limit)
        ).all()
    return [KeyFile(*row) for row in rows]


def note_keys_deleted(ledger: Engine, paths: Sequence[str]) -> None:
    """Note that these files are gone; their rows say that the date had them."""
    with ledger.begin() as connection:
        connection.execute(
            update(key_files).where(key_files.c.path.in_(paths)).values(deleted_at=now_us())
        )


def add_key_file(connection: Connection, file: KeyFile) -> None:
    """Name one more file of the index, in the caller's transaction."""
    connection.execute(
        insert(key_files).values(path=file.path, arrival_date=file.arrival_date, rows=file.rows)
    )


def announce_key_file(ledger: Engine, path: str, arrival_date: date) -> None:
    """Name a file that is about to be written, to be swapped in for others."""
    with ledger.begin() as connection:
        connection.execute(
            insert(key_files).values(
                path=path, arrival_date=arrival_date, rows=0, retired_at=now_us()
            )
        )


def replace_key_files(ledger: Engine, before: Sequence[KeyFile], after: Sequence[KeyFile]) -> bool:
    """Swap files for announced ones with the same keys; False when another worker was first."""
    with ledger.begin() as connection:
        if not _swapped(connection, before, after):
            connection.rollback()
            return False
    return True


def swap_key_files(connection: Connection, swap: KeySwap) -> None:
    """The same in the caller's transaction. Raises PlanConflict when another was first."""
    if not _swapped(connection, swap.before, swap.after):
        raise PlanConflict("the duplicate index was changed by another process meanwhile")


def _swapped(connection: Connection, before: Sequence[KeyFile], after: Sequence[KeyFile]) -> bool:
    retired = connection.execute(
        update(key_files)
        .where(
            key_files.c.path.in_([file.path for file in before]),
            key_files.c.retired_at.is_(None),
        )
        .values(retired_at=now_us())
    )
    done = retired.rowcount == len(before)
    for file in after:
        revived = connection.execute(
            update(key_files)
            .where(key_files.c.path == file.path, key_files.c.retired_at.is_not(None))
            .values(retired_at=None, rows=file.rows)
        )
        done &= revived.rowcount == 1  # else it took so long that its file was deleted
    return done


def retired_key_files(ledger: Engine, before: int) -> list[str]:
    """Files that were replaced, or announced and never used, before that time (µs).

    Nobody opens them any more.
    """
    with reading(ledger) as connection:
        return list(
            connection.execute(
                select(key_files.c.path).where(key_files.c.retired_at < before)
            ).scalars()
        )


def named_key_files(ledger: Engine, paths: Iterable[str]) -> set[str]:
    """Those of these files that the ledger knows, the ones merged into others included."""
    with reading(ledger) as connection:
        return set(
            connection.scalars(select(key_files.c.path).where(key_files.c.path.in_(list(paths))))
        )


def forget_key_files(ledger: Engine, paths: Sequence[str]) -> None:
    """Drop files from the ledger once they are gone from the lake."""
    with ledger.begin() as connection:
        connection.execute(delete(key_files).where(key_files.c.path.in_(paths)))
