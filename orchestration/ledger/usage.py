"""Daily usage: how many events each project sent on a UTC day, over all capture APIs.

Each capture API adds what it has taken in since it last did, and reads what all have together.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from sqlalchemy import Engine, bindparam, select

from orchestration.ledger.connection import reading
from orchestration.ledger.tables import daily_usage
from orchestration.ledger.upsert import INSERTS

_OF_DAY = select(daily_usage.c.project_id, daily_usage.c.events).where(
    daily_usage.c.day == bindparam("of_day")
)


def add_usage(ledger: Engine, day: date, counts: Mapping[int, int]) -> dict[int, int]:
    """Add to the projects' events of the day; what these projects have now in all.

    All are added or none. When the ledger goes away during the commit nobody can tell which, and
    adding again may count these events twice.
    """
    if not counts:
        return {}
    adding = INSERTS[ledger.dialect.name](daily_usage)
    adding = adding.on_conflict_do_update(
        index_elements=[daily_usage.c.day, daily_usage.c.project_id],
        set_={"events": daily_usage.c.events + adding.excluded.events},
    )
    rows = [
        {"day": day, "project_id": project_id, "events": counts[project_id]}
        for project_id in sorted(counts)  # in one order everywhere: no two can wait for each other
    ]
    with ledger.begin() as connection:
        connection.execute(adding, rows)
        totals = connection.execute(_OF_DAY, {"of_day": day}).all()
    return {project_id: events for project_id, events in totals if project_id in counts}


def usage_of(ledger: Engine, day: date) -> dict[int, int]:
    """What every project has sent on that day, over all capture APIs."""
    with reading(ledger) as connection:
        return dict(connection.execute(_OF_DAY, {"of_day": day}).all())
