"""Alarms on record: since when each stands, when it was over, and what has been told of it.

A row is added when something begins to be wrong and closed when it is over; the same thing that
goes wrong later has a row of its own. Told is noted after the telling, so a crash between the two
tells a second time, under the same id, and never not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, Row, insert, or_, select, update

from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.tables import alarms

_TEXT_CHARACTERS = 4_000


@dataclass(frozen=True)
class Alarm:
    """One alarm on record. Times are µs; `over_at` is None while it stands."""

    alarm_id: int
    name: str
    text: str
    raised_at: int
    seen_at: int
    over_at: int | None
    told_at: int | None
    over_told_at: int | None


def note_alarms(
    ledger: Engine,
    wrong: Mapping[str, str],
    calm_us: int,
    is_judged: Callable[[str], bool] = lambda name: True,
) -> None:
    """Bring the record up to date with what is wrong now, a text by name.

    One that is no longer seen is over after `calm_us`, so that what comes and goes is told once.
    What cannot be judged now (`is_judged` of its name) stays as it is.
    """
    now = now_us()
    standing = alarms.c.over_at.is_(None)
    with ledger.begin() as connection:
        known = {row.name: row for row in connection.execute(select(alarms).where(standing))}
        for name in sorted(wrong.keys() - known.keys()):
            connection.execute(
                insert(alarms).values(
                    name=name, text=wrong[name][:_TEXT_CHARACTERS], raised_at=now, seen_at=now
                )
            )
        for name, row in known.items():
            this = update(alarms).where(alarms.c.alarm_id == row.alarm_id)
            if name in wrong:
                text = wrong[name][:_TEXT_CHARACTERS]
                connection.execute(this.values(seen_at=now, text=text))
            elif is_judged(name) and row.seen_at + calm_us <= now:
                connection.execute(this.values(over_at=now))


def untold_alarms(ledger: Engine, limit: int) -> list[Alarm]:
    """What is to be told, the oldest first: begun or over since it was last told of.

    One that was over before anybody was told of it is told of as such, once.
    """
    with reading(ledger) as connection:
        rows = connection.execute(
            select(alarms)
            .where(
                or_(
                    alarms.c.over_at.is_(None) & alarms.c.told_at.is_(None),
                    alarms.c.over_at.is_not(None) & alarms.c.over_told_at.is_(None),
                )
            )
            .order_by(alarms.c.alarm_id)
            .limit(limit)
        ).all()
    return [_alarm(row) for row in rows]


def mark_told(ledger: Engine, told: Iterable[Alarm]) -> None:
    """Note that these were told, as they were."""
    now = now_us()
    with ledger.begin() as connection:
        for alarm in told:
            column = "told_at" if alarm.over_at is None else "over_told_at"
            connection.execute(
                update(alarms).where(alarms.c.alarm_id == alarm.alarm_id).values({column: now})
            )


def last_alarms(ledger: Engine, limit: int) -> list[Alarm]:
    """Those that stand, and the newest of those that are over; the newest last."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(alarms)
            .order_by(alarms.c.over_at.is_not(None), alarms.c.alarm_id.desc())
            .limit(limit)
        ).all()
    return [_alarm(row) for row in reversed(rows)]


def _alarm(row: Row[tuple[object, ...]]) -> Alarm:
    return Alarm(**row._mapping)
