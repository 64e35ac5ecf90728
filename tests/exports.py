"""Files as PostHog's batch exports write them: JSON lines and Parquet, plain and compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.records import uuid_of

FIRST = datetime(2023, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def exported(number: int, **fields: Any) -> dict[str, Any]:
    """An event as it is exported, with the uuid of that number."""
    at = FIRST + timedelta(seconds=number)
    return {
        "uuid": uuid_of(number),
        "event": "$pageview",
        "distinct_id": f"person-{number % 7}",
        "properties": {"$lib": "web", "$ip": "203.0.113.9", "number": number},
        "timestamp": at.isoformat(),
        "created_at": (at + timedelta(seconds=2)).isoformat(),
        "elements_chain": "",
        "person_id": uuid_of(1_000_000 + number % 7),
        "person_properties": {"plan": "free"},
        "_inserted_at": (at + timedelta(seconds=9)).isoformat(),
        **fields,
    }


def line(number: int, **fields: Any) -> bytes:
    """The same as a line of JSON."""
    return json.dumps(exported(number, **fields)).encode()


def lines_of(numbers: Iterable[int]) -> list[bytes]:
    """The lines of several."""
    return [line(number) for number in numbers]


def write_lines(path: Path, lines: Iterable[bytes], compression: str | None = None) -> str:
    """A file of JSON lines; gives its path. Gzip has a member a line, as PostHog writes it."""
    whole = [each + b"\n" for each in lines]
    if compression == "gzip":
        path.write_bytes(b"".join(map(gzip.compress, whole)))
    elif compression is not None:
        with pa.CompressedOutputStream(str(path), compression) as sink:
            sink.write(b"".join(whole))
    else:
        path.write_bytes(b"".join(whole))
    return str(path)


def write_parquet(path: Path, numbers: Iterable[int], row_group: int = 1_000) -> str:
    """The same as Parquet: objects are JSON in a string, times are timestamps; gives its path."""
    rows = [exported(number) for number in numbers]
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in ("timestamp", "created_at", "_inserted_at"):
            times = [datetime.fromisoformat(value) for value in values]
            columns[name] = pa.array(times, pa.timestamp("us", "UTC"))
        elif name in ("properties", "person_properties"):
            columns[name] = pa.array(map(json.dumps, values), pa.string())
        else:
            columns[name] = pa.array(values, pa.string())
    pq.write_table(pa.table(columns), path, row_group_size=row_group, compression="zstd")
    return str(path)
