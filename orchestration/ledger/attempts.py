"""Attempts: every try at a stage of a batch, on record before it begins."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Engine, func, insert, select, update

from assets.pipeline.batch import State
from assets.pipeline.codes import Remedy
from assets.pipeline.errors import BatchError, SeenMeanwhile
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.of_topics import of_topics
from orchestration.ledger.tables import attempts, batches

_ERROR_TEXT_CHARACTERS = 4000


@dataclass(frozen=True)
class Attempt:
    """One try at one stage. Times are µs; `ended_at` is None while it runs or when it was killed.

    `outcome` is ok, failed or killed, None while it runs. Of a failed one, `remedy` says what is
    done about the error, and `next_try_at` when, if that is known.
    """

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
    error_code: int | None = None
    remedy: str | None = None
    next_try_at: int | None = None

    @property
    def retriable(self) -> bool | None:
        """Whether the same is tried again by itself; None when nothing went wrong."""
        if self.outcome == "killed":
            return True
        return None if self.remedy is None else self.remedy != Remedy.REFUSED


_COLUMNS = tuple(attempts.c[field.name] for field in fields(Attempt))


@contextmanager
def attempt(
    ledger: Engine, batch_id: str, stage: str, run_id: str, host: str = ""
) -> Iterator[int]:
    """Record a try for the length of a with-block; gives its number, from 1.

    `host` is this one, unless it is said.

    A process that dies inside leaves the attempt without an end, which is what happened: whoever
    takes over its lease notes it as killed.
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
                host=host or socket.gethostname(),
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
            **(
                {
                    "error_code": error.code,
                    "remedy": error.remedy,
                    "next_try_at": error.next_try_at,
                }
                if isinstance(error, BatchError)
                else {}
            ),
        )
        raise
    _close(ledger, attempt_id, outcome="ok")


def _close(ledger: Engine, attempt_id: int, **values: Any) -> None:
    with ledger.begin() as connection:
        connection.execute(
            update(attempts)
            # Whoever thought it dead has closed it: then it was only slow, and is fenced off.
            .where(attempts.c.attempt_id == attempt_id, attempts.c.outcome.is_(None))
            .values(ended_at=now_us(), **values)
        )


def note_killed(ledger: Engine, lease: Lease, *topics: str) -> int:
    """Close the attempts that have no end: whoever made them no longer has the lease.

    Gives how many there were. Their end is not known and stays empty.
    """
    unfinished = select(batches.c.batch_id).where(
        of_topics(topics), batches.c.dead_letters_loaded_at.is_(None)
    )
    open_ = attempts.c.outcome.is_(None) & attempts.c.batch_id.in_(unfinished)
    with reading(ledger) as connection:
        if connection.scalar(select(attempts.c.attempt_id).where(open_).limit(1)) is None:
            return 0
    with ledger.begin() as connection:
        check_fence(connection, lease)
        return connection.execute(
            update(attempts)
            .where(open_)
            .values(
                outcome="killed",
                error_text="it never said how it ended: its process was killed, or was silent for "
                "so long that another worker took over",
            )
        ).rowcount


def open_attempts(ledger: Engine, *topics: str) -> list[Attempt]:
    """The attempts that are under way, or whose worker has ended without a word."""
    of_these = select(batches.c.batch_id).where(of_topics(topics))
    with reading(ledger) as connection:
        rows = connection.execute(
            select(*_COLUMNS)
            .where(attempts.c.outcome.is_(None), attempts.c.batch_id.in_(of_these))
            .order_by(attempts.c.attempt_id)
        ).all()
    return [Attempt(**row._mapping) for row in rows]


def attempts_of(ledger: Engine, batch_id: str) -> list[Attempt]:
    """All attempts at a batch, in the order they began."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(*_COLUMNS).where(attempts.c.batch_id == batch_id).order_by(attempts.c.attempt_id)
        ).all()
    return [Attempt(**row._mapping) for row in rows]


def tries_at(ledger: Engine, batch_id: str, stage: str) -> int:
    """How often a stage of a batch was tried so far: the number of the last attempt."""
    with reading(ledger) as connection:
        last: int | None = connection.scalar(
            select(func.max(attempts.c.number)).where(
                attempts.c.batch_id == batch_id, attempts.c.stage == stage
            )
        )
    return last or 0


def last_failures(ledger: Engine, limit: int, *topics: str) -> list[Attempt]:
    """The last attempts at batches of these topics that failed, the newest first.

    That a batch is staged again for what others have registered meanwhile is no failure.
    Nor is anything to be done about batches that were let go of for good.
    """
    with reading(ledger) as connection:
        rows = connection.execute(
            select(*_COLUMNS)
            .join(batches, batches.c.batch_id == attempts.c.batch_id)
            .where(
                of_topics(topics),
                attempts.c.outcome == "failed",
                attempts.c.error_class.is_distinct_from(SeenMeanwhile.__name__),
                batches.c.state != State.SUPERSEDED,
            )
            .order_by(attempts.c.attempt_id.desc())
            .limit(limit)
        ).all()
    return [Attempt(**row._mapping) for row in rows]
