"""The check `duplicates`: within the window no project has the same uuid twice in ClickHouse.

`balance` proves that what was staged is there; this asks the table itself, whatever was staged. So
many uuids are looked at in a run that it stays cheap: a part of them, by their hash, another one
each time.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import dagster as dg

from assets.answers import answer
from assets.metadata import table_of
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.errors import ClickHouseAway
from assets.pipeline.worker import Worker
from assets.queryable import QUERYABLE

DUPLICATES = dg.AssetCheckSpec(
    "duplicates",
    asset=QUERYABLE,
    description=(
        "Within the newest dates of the duplicate window each uuid of a project stands once in the "
        "table. Of many rows each run looks at a part, chosen by chance."
    ),
)

ROWS_A_RUN = 2_000_000
_NAMED = 20

_WINDOW = """
SELECT max(arrival_date), count() FROM {database:Identifier}.events
WHERE arrival_date > (
    SELECT max(arrival_date) FROM {database:Identifier}.events
) - {days:UInt32}
"""
_TWICE = """
SELECT project_id, uuid, groupArray(2)((_topic, _partition, _offset))
FROM {database:Identifier}.events
WHERE arrival_date > {last:Date} - {days:UInt32}
    AND cityHash64(uuid) % {parts:UInt32} = {part:UInt32}
GROUP BY project_id, uuid HAVING count() > 1 ORDER BY uuid LIMIT {named:UInt32}
"""


def duplicates_result(worker: Worker) -> dg.AssetCheckResult:
    """Ask the table; that ClickHouse is away is no reason to fail the run."""
    try:
        return _looked_at(worker)
    except ClickHouseAway as error:
        return answer(DUPLICATES, False, f"cannot be told now: {error}")


def _looked_at(worker: Worker) -> dg.AssetCheckResult:
    asked: dict[str, Any] = {
        "database": worker.settings.clickhouse_database,
        "days": worker.settings.duplicate_window_days,
    }
    with named_errors("looking for duplicates"):
        [(last, rows)] = worker.clickhouse.query(_WINDOW, parameters=asked).result_rows
        if not rows:
            return answer(DUPLICATES, True, "the table is empty", {"rows": 0})
        parts = -(-int(rows) // ROWS_A_RUN)
        asked |= {"last": last, "parts": parts, "part": random.randrange(parts), "named": _NAMED}
        found = worker.clickhouse.query(_TWICE, parameters=asked).result_rows
    first = last - timedelta(days=worker.settings.duplicate_window_days - 1)
    scope = f"one in {parts} of the uuids" if parts > 1 else "all uuids"
    metadata: dict[str, Any] = {"scope": f"{scope} of {first} to {last}", "rows": int(rows)}
    if not found:
        return answer(
            DUPLICATES, True, f"{scope} of {first} to {last} looked at: each stands once", metadata
        )
    metadata["twice"] = table_of(
        [(project, str(uuid), *map(_place, places)) for project, uuid, places in found],
        ("project", "int"),
        ("uuid", "string"),
        ("one", "string"),
        ("other", "string"),
    )
    more = "at least " if len(found) == _NAMED else ""
    told = (
        f"{more}{len(found)} uuids stand more than once, such as {found[0][1]}: "
        f"`tidemark explain {found[0][1]}` shows where its records came from"
    )
    return answer(DUPLICATES, False, told, metadata)


def _place(place: tuple[str, int, int]) -> str:
    topic, partition, offset = place
    return f"{topic}/{partition}:{offset}"
