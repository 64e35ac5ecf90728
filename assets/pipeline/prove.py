"""Prove: ask ClickHouse what it holds of a batch, and hold it against what was staged.

The answer comes from a projection that lives inside each part, so it is as true as the rows are,
through merges, crashes and restores, and costs one granule. What an insert reported is never
trusted: an insert that was deduplicated away reports its rows as written all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.external import ExternalData

from assets.pipeline.batch import Batch, Fingerprint
from assets.pipeline.clickhouse import named_errors

_FINGERPRINTS = """
SELECT
    _batch_id, _partition, count(), min(_offset), max(_offset), toUInt64(sum(_offset)),
    sum(toUInt64(_offset) * toUInt64(_offset))
FROM {database:Identifier}.{table:Identifier}
WHERE _batch_id IN {batch_ids:Array(String)}
GROUP BY _batch_id, _partition
ORDER BY _batch_id, _partition
"""


_KEYS = """
SELECT project_id, UUIDStringToNum(toString(uuid)) AS uuid, _partition, _offset
FROM {database:Identifier}.events
WHERE arrival_date = {arrival_date:Date} AND _batch_id = {batch_id:String}
"""

_ROWS_OF_OTHERS = """
SELECT _partition, _offset, _batch_id
FROM {database:Identifier}.events
WHERE arrival_date = {arrival_date:Date} AND _topic = {topic:String}
  AND (_partition, _offset) IN (SELECT partition, offset FROM places)
  AND _batch_id != {batch_id:String}
  AND _batch_id NOT IN
      (SELECT batch_id FROM {database:Identifier}.batches WHERE topic_id != {topic_id:String})
ORDER BY _partition, _offset
"""


class Proof(StrEnum):
    """What ClickHouse holds of a batch."""

    NOTHING = "nothing"
    ALL = "all"
    OTHER = "other"


def read_fingerprints(
    client: Client, database: str, table: str, batch_id: str
) -> tuple[Fingerprint, ...]:
    """What ClickHouse holds of the batch, one fingerprint for each partition."""
    return read_fingerprints_of(client, database, table, [batch_id]).get(batch_id, ())


def read_fingerprints_of(
    client: Client, database: str, table: str, batch_ids: Sequence[str]
) -> dict[str, tuple[Fingerprint, ...]]:
    """The same for several batches in one query; batches of which there is nothing are missing."""
    with named_errors("proving " + ", ".join(batch_ids[:3]) + (" …" if batch_ids[3:] else "")):
        rows = client.query(
            _FINGERPRINTS,
            parameters={"database": database, "table": table, "batch_ids": list(batch_ids)},
        ).result_rows
    found: dict[str, tuple[Fingerprint, ...]] = {}
    for batch_id, *numbers in rows:
        found[batch_id] = (*found.get(batch_id, ()), Fingerprint(*map(int, numbers)))
    return found


def loaded_keys(client: Client, database: str, batch: Batch) -> pa.Table:
    """Which events a batch has in ClickHouse: project_id, uuid (bytes), _partition, _offset."""
    with named_errors(f"reading the uuids of {batch.batch_id}"):
        return client.query_arrow(
            _KEYS,
            parameters={
                "database": database,
                "arrival_date": batch.arrival_date,
                "batch_id": batch.batch_id,
            },
        )


def rows_of_others(
    client: Client,
    database: str,
    batch: Batch,
    places: Iterable[tuple[int, int]],
) -> list[tuple[int, int, str]]:
    """Rows of these records that other batches have brought, with their batch.

    Of the batch's arrival date and incarnation of its topic. It reads three columns of that date.
    """
    lines = "".join(f"{partition}\t{offset}\n" for partition, offset in places)
    asked = ExternalData(
        file_name="places",
        data=lines.encode(),
        fmt="TSV",
        structure=["partition Int32", "offset Int64"],
    )
    with named_errors(f"looking for rows of the records of {batch.batch_id}"):
        rows = client.query(
            _ROWS_OF_OTHERS,
            parameters={
                "database": database,
                "arrival_date": batch.arrival_date,
                "topic": batch.topic,
                "topic_id": batch.topic_id,
                "batch_id": batch.batch_id,
            },
            external_data=asked,
        ).result_rows
    return [(int(partition), int(offset), str(batch_id)) for partition, offset, batch_id in rows]


def compare(staged: Sequence[Fingerprint], found: Sequence[Fingerprint]) -> Proof:
    """Whether ClickHouse holds nothing of the batch, all of it, or something else."""
    if tuple(found) == tuple(staged):
        return Proof.ALL
    return Proof.NOTHING if not found else Proof.OTHER


def describe_difference(staged: Sequence[Fingerprint], found: Sequence[Fingerprint]) -> str:
    """In words, which partitions differ and by how much."""
    expected = {print_.partition: print_ for print_ in staged}
    actual = {print_.partition: print_ for print_ in found}
    lines = []
    for partition in sorted(expected | actual):
        one, other = expected.get(partition), actual.get(partition)
        if one != other:
            lines.append(
                f"partition {partition}: staged {one.rows if one else 0:,} rows, "
                f"ClickHouse has {other.rows if other else 0:,}"
                + (", with other offsets" if one and other and one.rows == other.rows else "")
            )
    return "; ".join(lines)
