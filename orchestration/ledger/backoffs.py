"""Back-offs: what fails now, how often in a row, and when it is tried again.

A micro-batch is a process of its own, so what it learns about ClickHouse stands here for the next
one. Names: `table/<topic>/<table>` for a table that takes nothing, `batch/<id>/<stage>` for a batch
that fails by itself. A row is there only while something fails; success removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from sqlalchemy import Engine, delete, insert, select, update

from assets.pipeline.codes import Remedy
from assets.pipeline.errors import BatchError
from orchestration.ledger.connection import is_of_a_wrong_clock, now_us, reading
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.tables import backoffs

_ERROR_TEXT_CHARACTERS = 2_000


@dataclass(frozen=True)
class Backoff:
    """What fails, so often in a row, since when, and when it is tried again. Times are µs.

    `unknown` of the failures were errors that nobody knows.
    """

    name: str
    failures: int
    since: int
    failed_at: int
    next_try_at: int
    error_code: int | None
    error_text: str
    unknown: int = 0


def table_name(topic: str, table: str) -> str:
    """The name of a table of ClickHouse, as the workers of a topic meet it."""
    return f"table/{topic}/{table}"


def batch_name(batch_id: str, stage: str = "") -> str:
    """The name of a batch at a stage; without one, how its names at all stages begin."""
    return f"batch/{batch_id}/{stage}"


def backoffs_now(ledger: Engine) -> dict[str, Backoff]:
    """Everything that fails now, by name: few rows, or none.

    What was noted by a clock that was ahead is due: else it would be waited for until then.
    """
    with reading(ledger) as connection:
        rows = connection.execute(select(backoffs)).all()
    known = (Backoff(**row._mapping) for row in rows)
    return {one.name: _due_now(one) if is_of_a_wrong_clock(one.failed_at) else one for one in known}


def _due_now(known: Backoff) -> Backoff:
    now = now_us()
    return replace(known, since=min(known.since, now), failed_at=now, next_try_at=now)


def note_failure(
    ledger: Engine,
    lease: Lease,
    name: str,
    error: BatchError,
    delay_us: Callable[[int], int],
    at_least: int = 1,
) -> Backoff:
    """Count one more failure in a row, `at_least` so many; `delay_us` of that is the wait."""
    now = now_us()
    with ledger.begin() as connection:
        check_fence(connection, lease)
        known = connection.execute(select(backoffs).where(backoffs.c.name == name)).one_or_none()
        unknown = 0 if known is None else known.unknown
        failures = max(1 if known is None else known.failures + 1, at_least)
        found = Backoff(
            name=name,
            failures=failures,
            since=now if known is None else min(known.since, now),
            failed_at=now,
            next_try_at=now + delay_us(failures),
            error_code=error.code,
            error_text=str(error)[:_ERROR_TEXT_CHARACTERS],
            unknown=unknown + (error.remedy is Remedy.UNKNOWN),
        )
        if known is None:
            connection.execute(insert(backoffs).values(**vars(found)))
        else:
            connection.execute(
                update(backoffs).where(backoffs.c.name == name).values(**vars(found))
            )
    return found


def forget_failures(ledger: Engine, lease: Lease, names: Iterable[str]) -> None:
    """What went well again, or was given back by a person, is tried without a wait."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        connection.execute(delete(backoffs).where(backoffs.c.name.in_(list(names))))
