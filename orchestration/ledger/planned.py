"""The row of a batch as it is planned, whoever plans it."""

from __future__ import annotations

from sqlalchemy import Connection, insert

from assets.pipeline.batch import Batch
from orchestration.ledger.tables import batches

_COLUMNS = (
    *("batch_id", "topic", "cluster_id", "topic_id", "arrival_date", "generation"),
    *("code_version", "state", "run_id", "planned_at"),
)
"""What is known of a batch when it is planned."""


def add_planned(connection: Connection, batch: Batch) -> None:
    """Store a batch, without its ranges, in the caller's transaction."""
    values = {name: getattr(batch, name) for name in _COLUMNS}
    connection.execute(insert(batches).values(values))
