"""The columns: what a record, a staged event and a dead letter look like in Arrow, each once.

    RAW          what a read gives: where the record stands in Kafka, and its bytes
    HEAD         the record's head as parsed (see capture_api.events.record)
    PROMOTED     properties that get a column of their own, by the name of that column
    EVENTS       a row of the staged Parquet file and, but for what ClickHouse adds at the
                 insert (`_run_id`, `_inserted_at`), of the table `events`
    DEAD_LETTERS a rejected record, in Parquet and in the table `dead_letters`

The ClickHouse side stands in `tables.sql`; a test holds the two against each other.
"""

from __future__ import annotations

import pyarrow as pa

MICROSECONDS = pa.timestamp("us", tz="UTC")
MILLISECONDS = pa.timestamp("ms", tz="UTC")

RAW = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("appended_at", pa.int64(), nullable=False),  # broker's clock, ms since 1970
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),  # null: a tombstone
    ]
)

HEAD = pa.schema(
    [
        pa.field("v", pa.int64()),
        pa.field("uuid", pa.string()),
        pa.field("project_id", pa.int64()),
        pa.field("event", pa.string()),
        pa.field("distinct_id", pa.string()),
        pa.field("timestamp", pa.int64()),  # µs since 1970
        pa.field("client_timestamp", pa.string()),
        pa.field("offset_ms", pa.int64()),
        pa.field("sent_at", pa.int64()),  # µs since 1970
        pa.field("received_at", pa.int64()),  # µs since 1970
        pa.field("ip", pa.string()),
        pa.field("user_agent", pa.string()),
        pa.field("sdk", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("flags", pa.int64()),
    ]
)

REQUIRED_HEAD = (
    "v",
    "uuid",
    "project_id",
    "event",
    "distinct_id",
    "timestamp",
    "received_at",
)
"""Head fields without which a record is rejected."""

PROMOTED = {
    "lib": "$lib",
    "lib_version": "$lib_version",
    "os": "$os",
    "os_version": "$os_version",
    "browser": "$browser",
    "device_type": "$device_type",
    "device_id": "$device_id",
    "session_id": "$session_id",
    "window_id": "$window_id",
    "current_url": "$current_url",
    "referrer": "$referrer",
    "referring_domain": "$referring_domain",
    "utm_source": "utm_source",
    "utm_medium": "utm_medium",
    "utm_campaign": "utm_campaign",
    "utm_term": "utm_term",
    "utm_content": "utm_content",
}
"""Column → the property it is taken from, as text. Empty when the event has none."""

DERIVED = ("url_host", "url_path")
"""Text columns that enrichment makes from `current_url`."""

MADE = (*PROMOTED, *DERIVED)
"""Columns that can be made again from what else stands in a staged row."""

EVENTS = pa.schema(
    [
        pa.field("project_id", pa.uint32(), nullable=False),
        pa.field("uuid", pa.uuid(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("distinct_id", pa.string(), nullable=False),
        pa.field("timestamp", MICROSECONDS, nullable=False),
        pa.field("properties", pa.string(), nullable=False),  # the client's JSON object
        # What enrichment was given, kept so that a day can be enriched again.
        pa.field("client_timestamp", pa.string(), nullable=False),  # empty: not sent
        pa.field("offset_ms", pa.int64()),
        pa.field("sent_at", MICROSECONDS),
        pa.field("received_at", MICROSECONDS, nullable=False),
        pa.field("ip", pa.string(), nullable=False),
        pa.field("user_agent", pa.string(), nullable=False),
        pa.field("sdk", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("flags", pa.uint32(), nullable=False),
        # What enrichment made.
        *(pa.field(name, pa.string(), nullable=False) for name in MADE),
        # Where it came from.
        pa.field("arrival_date", pa.date32(), nullable=False),
        pa.field("_appended_at", MILLISECONDS, nullable=False),
        pa.field("_topic", pa.string(), nullable=False),
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("_batch_id", pa.string(), nullable=False),
        pa.field("_generation", pa.uint32(), nullable=False),  # 0: as first staged (remaking.py)
    ]
)

DEAD_LETTERS = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary(), nullable=False),  # DEAD_LETTER_BYTES, or whole: KEPT_WHOLE
        pa.field("value_length", pa.int64(), nullable=False),
        pa.field("value_sha256", pa.string(), nullable=False),
        pa.field("headers", pa.string(), nullable=False),  # JSON list of [name, base64 or null]
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("arrival_date", pa.date32(), nullable=False),
        pa.field("_appended_at", MILLISECONDS, nullable=False),
        pa.field("_topic", pa.string(), nullable=False),
        pa.field("_topic_id", pa.string(), nullable=False),
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("_batch_id", pa.string(), nullable=False),
        pa.field("_generation", pa.uint32(), nullable=False),
    ]
)

DEAD_LETTER_BYTES = 64 << 10
"""Bytes of a broken value that are kept; longer ones keep their length and SHA-256 as well."""

DUPLICATES = pa.schema(
    [
        pa.field("project_id", pa.uint32(), nullable=False),
        pa.field("uuid", pa.uuid(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("_appended_at", MILLISECONDS, nullable=False),
        pa.field("_topic", pa.string(), nullable=False),
        pa.field("_partition", pa.int32(), nullable=False),
        pa.field("_offset", pa.int64(), nullable=False),
        pa.field("first_batch_id", pa.string(), nullable=False),
        pa.field("first_partition", pa.int32(), nullable=False),
        pa.field("first_offset", pa.int64(), nullable=False),
    ]
)
"""A record whose uuid its project had sent before, and where the first one stands."""
