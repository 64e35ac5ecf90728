"""The check `schema`: ClickHouse's tables and the newest staged files against this version."""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets.answers import answer, listed
from assets.pipeline.errors import ClickHouseAway
from assets.pipeline.schema import look_at_schemas
from assets.pipeline.worker import Worker
from assets.queryable import QUERYABLE
from orchestration.ledger.batches import newest_batches

SCHEMA = dg.AssetCheckSpec(
    "schema",
    asset=QUERYABLE,
    description=(
        "Every table in ClickHouse has the columns, types, defaults, keys, indexes and projections "
        "that this version makes, and so has the newest staged file of each kind. What somebody "
        "has added is named and not judged."
    ),
)

_TOLD = 3
_SHOWN = 50
_LOOKED_THROUGH = 20  # batches of each topic, for the newest files


def schema_result(worker: Worker) -> dg.AssetCheckResult:
    """The tables, and the newest files; that ClickHouse is away is no reason to fail the run."""
    settings = worker.settings
    newest = [
        batch
        for topic in settings.topics
        for batch in newest_batches(worker.ledger, topic, _LOOKED_THROUGH)
    ]
    try:
        seen = look_at_schemas(worker.clickhouse, settings.clickhouse_database, worker.lake, newest)
    except ClickHouseAway as error:
        return answer(SCHEMA, False, f"cannot be told now: {error}")
    metadata: dict[str, Any] = {
        "tables": seen.tables,
        "files": seen.files,
        "drifts": len(seen.drifts),
    }
    if seen.drifts:
        metadata["drifted"] = listed(seen.drifts, _SHOWN)
    if seen.besides:
        metadata["besides"] = ", ".join(seen.besides[:_SHOWN])
    told = "; ".join(seen.drifts[:_TOLD]) or (
        f"{seen.tables} tables of {settings.clickhouse_database} and {seen.files} staged files "
        "are as this version makes them"
    )
    return answer(SCHEMA, not seen.drifts, told, metadata)
