"""Parts: each batch is a part until ClickHouse merges it; too many, and it takes no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assets.pipeline.clickhouse import named_errors
from assets.pipeline.worker import Worker

_PARTS = """
SELECT table, partition, count() AS parts, sum(rows), sum(bytes_on_disk)
FROM system.parts
WHERE active AND database = {database:String} AND table IN ('events', 'dead_letters')
GROUP BY table, partition
ORDER BY parts DESC
"""
_LIMIT = "SELECT value FROM system.merge_tree_settings WHERE name = 'parts_to_delay_insert'"
_TOO_MANY_SHARE = 0.5


@dataclass(frozen=True)
class Parts:
    """The partition with the most parts, and at how many ClickHouse begins to slow inserts."""

    table: str
    partition: str
    parts: int
    limit: int
    rows: int
    bytes: int

    @property
    def are_too_many(self) -> bool:
        """Whether half of the way to that limit is gone."""
        return self.parts > self.limit * _TOO_MANY_SHARE


def most_parts(worker: Worker) -> Parts:
    """Ask ClickHouse. `rows` and `bytes` are of all partitions."""
    with named_errors("counting parts"):
        parameters: dict[str, Any] = {"database": worker.settings.clickhouse_database}
        found = worker.clickhouse.query(_PARTS, parameters=parameters).result_rows
        ((limit,),) = worker.clickhouse.query(_LIMIT).result_rows
    table, partition, parts, *_ = found[0] if found else ("events", "", 0)
    rows, size = (sum(int(row[at]) for row in found) for at in (3, 4))
    return Parts(str(table), str(partition), int(parts), int(limit), rows, size)
