"""Attempts: every try at a stage of a batch, on record before it begins."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from sqlalchemy import Engine, func, insert, select, update

from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.tables import attempts, batches

_ERROR_TEXT_CHARACTERS = 4000


@dataclass(frozen=True)
class Attempt:
    """One try at one stage. Times are µs; `ended_at` is None while it runs or when it died."""

    batch_id: str
    stage: str
    number: int
    run_id: str
    host: str
    started_at: int
    ended_at: int | None
    outcome: str | None
    error_class: str | None
    error_text: str | None


_COLUMNS = tuple(attempts.c[field.name] for field in fields(Attempt))


@contextmanager
def attempt(ledger: Engine, batch_id: str, stage: str, run_id: str) -> Iterator[int]:
    """Record a try for the length of a with-block; gives its number, from 1.

    A process that dies inside leaves the attempt without an end, which is what happened.
    """
    with ledger.begin() as connection:
        number = connection.execute(
            select(func.coalesce(func.max(attempts.c.number), 0) + 1).where(
                attempts.c.batch_id == batch_id, attempts.c.stage == stage
            )
        ).scalar_one()
        attempt_id = connection.execute(
            insert(attempts)
            .values(
                batch_id=batch_id,
                stage=stage,
                number=number,
                run_id=run_id,
                host=socket.gethostname(),
                started_at=now_us(),
            )
            .returning(attempts.c.attempt_id)
        ).scalar_one()
    try:
        yield number
    except BaseException as error:
        _close(
            ledger,
            attempt_id,
            outcome="failed",
            error_class=type(error).__name__,
            error_text=str(error)[:_ERROR_TEXT_CHARACTERS],
        )
        raise
    _close(ledger, attempt_id, outcome="ok")


def _close(ledger: Engine, attempt_id: int, **values: str) -> None:
    with ledger.begin() as connection:
        connection.execute(
            update(attempts)
            .where(attempts.c.attempt_id == attempt_id)
            .values(ended_at=now_us(), **values)
        )


def attempts_of(ledger: Engine, batch_id: str) -> list[Attempt]:
    """All attempts at a batch, in the order they began."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(*_COLUMNS).where(attempts.c.batch_id == batch_id).order_by(attempts.c.attempt_id)
        ).all()
    return [Attempt(**row._mapping) for row in rows]


def last_failures(ledger: Engine, limit: int, *topics: str) -> list[Attempt]:
    """The last attempts at batches of these topics that failed, the newest first."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(*_COLUMNS)
            .join(batches, batches.c.batch_id == attempts.c.batch_id)
            .where(batches.c.topic.in_(topics), attempts.c.outcome == "failed")
            .order_by(attempts.c.attempt_id.desc())
            .limit(limit)
        ).all()
    return [Attempt(**row._mapping) for row in rows]
