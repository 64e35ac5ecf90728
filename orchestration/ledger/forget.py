"""Forgetting: rows of batches of long ago, of which there is nothing left to do or to look at.

A date is forgotten from its oldest batch on, some batches in a transaction, and dates from the
oldest on: what is left of a lane has no hole. Its end stays in `lanes`, so nothing is planned
twice. Copies of batches and attempts stay in ClickHouse.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, delete, exists, func, not_, select

from assets.pipeline.batch import IMPORT_PREFIX
from orchestration.ledger.connection import reading
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.let_go import done_with
from orchestration.ledger.of_topics import of_topics
from orchestration.ledger.rebuilds import OPEN
from orchestration.ledger.tables import (
    alarms,
    attempts,
    audits,
    batches,
    fingerprints,
    gaps,
    key_files,
    ranges,
    rebuilds,
    redrive_counts,
    redrive_letters,
    redrives,
    rejections,
    remakes,
    staged_files,
)

_ROWS_AT_ONCE = 500
_REDRIVES_AT_ONCE = 10
"""Each may carry tens of thousands of letters."""

_HANG_ON_BATCHES = (
    *(attempts, audits, gaps, rejections, fingerprints, ranges, staged_files),
    *(redrive_letters, redrive_counts, redrives),
)


def dates_on_record(ledger: Engine, before: date, *topics: str) -> list[tuple[date, int, bool]]:
    """Arrival dates before that one, the oldest first, and how many batches each has.

    And whether all of them were imported: those are in no lane that other dates have a part of.
    """
    others = func.sum(
        case((batches.c.topic.startswith(IMPORT_PREFIX, autoescape=True), 0), else_=1)
    )
    with reading(ledger) as connection:
        rows = connection.execute(
            select(batches.c.arrival_date, func.count(), others)
            .where(of_topics(topics), batches.c.arrival_date < before)
            .group_by(batches.c.arrival_date)
            .order_by(batches.c.arrival_date)
        ).all()
    return [(day, int(count), int(lanes) == 0) for day, count, lanes in rows]


def has_files(ledger: Engine, day: date, *topics: str) -> bool:
    """Whether something of a date is in the lake still: staged files, its index, remakes."""
    of_date = select(batches.c.batch_id).where(of_topics(topics), batches.c.arrival_date == day)
    staged = select(staged_files.c.batch_id).where(
        staged_files.c.batch_id.in_(of_date), staged_files.c.deleted_at.is_(None)
    )
    index = select(key_files.c.path).where(
        key_files.c.arrival_date == day, key_files.c.deleted_at.is_(None)
    )
    remade = select(remakes.c.batch_id).where(remakes.c.batch_id.in_(of_date))
    queries = (staged, index, remade)
    with reading(ledger) as connection:
        return any(connection.scalar(query.limit(1)) is not None for query in queries)


def forget_some(ledger: Engine, lease: Lease, day: date, *topics: str) -> int:
    """Forget some batches of a date, with all that hangs on them; gives how many, 0 at the end.

    Only those that are done with, and have no file in the lake any more.
    """
    with ledger.begin() as connection:
        check_fence(connection, lease)
        has_file = exists().where(
            staged_files.c.batch_id == batches.c.batch_id, staged_files.c.deleted_at.is_(None)
        )
        of_date = and_(
            of_topics(topics),
            batches.c.arrival_date == day,
            done_with(),
            not_(has_file),
            not_(exists().where(remakes.c.batch_id == batches.c.batch_id)),
        )
        # Redrives first: their letters name the batches that these were of.
        is_redrive = exists().where(redrives.c.batch_id == batches.c.batch_id)
        is_named = exists().where(redrive_letters.c.old_batch_id == batches.c.batch_id)
        ids = _ids(connection, and_(of_date, is_redrive), _REDRIVES_AT_ONCE)
        ids = ids or _ids(connection, and_(of_date, not_(is_named)), _ROWS_AT_ONCE)
        for table in _HANG_ON_BATCHES:
            connection.execute(delete(table).where(table.c.batch_id.in_(ids)))
        connection.execute(delete(batches).where(batches.c.batch_id.in_(ids)))
        if not ids:
            _forget_index(connection, day)
    return len(ids)


def forget_alarms(ledger: Engine, before_us: int, *, dry_run: bool = False) -> int:
    """Forget alarms that were over, and told to be so, before that time; gives how many."""
    columns = alarms.c
    return _forget(
        ledger, columns.alarm_id, columns.over_told_at < before_us, dry_run, columns.over_at
    )


def forget_rebuilds(
    ledger: Engine, topic: str, before_us: int, but: Collection[date], *, dry_run: bool = False
) -> int:
    """Forget rebuilds that ended before that time, but for those dates; gives how many."""
    columns = rebuilds.c
    ended = and_(
        columns.topic == topic,
        columns.state.not_in(OPEN),
        columns.moved_at < before_us,
        columns.arrival_date.not_in(list(but)),
        not_(exists().where(remakes.c.rebuild_id == columns.rebuild_id)),
    )
    return _forget(ledger, columns.rebuild_id, ended, dry_run, columns.moved_at)


def _forget(ledger: Engine, key: Any, condition: Any, dry_run: bool, order: Any) -> int:
    with ledger.begin() as connection:
        ids = connection.scalars(
            select(key).where(condition).order_by(order).limit(_ROWS_AT_ONCE)
        ).all()
        if ids and not dry_run:
            connection.execute(delete(key.table).where(key.in_(ids)))
    return len(ids)


def _ids(connection: Connection, condition: Any, limit: int) -> list[str]:
    return list(
        connection.scalars(
            select(batches.c.batch_id)
            .where(condition)
            .order_by(batches.c.planned_at, batches.c.batch_id)
            .limit(limit)
        )
    )


def _forget_index(connection: Connection, day: date) -> None:
    """The marks of a date's index, when no deployment has batches of it any more."""
    if connection.scalar(select(func.count()).where(batches.c.arrival_date == day)) == 0:
        connection.execute(
            delete(key_files).where(
                key_files.c.arrival_date == day, key_files.c.deleted_at.is_not(None)
            )
        )
