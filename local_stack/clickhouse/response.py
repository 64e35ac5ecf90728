"""An answer's headers, encodings and errors, as ClickHouse gives them.

Everything here is a pure function of the request and of what the engine reported.
"""

import json
from collections.abc import Sequence

from local_stack.clickhouse.engine import Outcome
from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.request import Asked

Headers = list[tuple[bytes, bytes]]

DEFAULT_FORMAT = "TabSeparated"

# Content-Encoding -> the engine's name for it, the most preferred first.
_ENCODINGS = {
    "zstd": "zstd",
    "br": "br",
    "lz4": "lz4",
    "gzip": "gzip",
    "deflate": "deflate",
    "xz": "xz",
}
# What the engine writes as LZ4 when there was nothing to write is no frame, but the mark of a
# frame's end.
_EMPTY_LZ4 = b"\x00\x00\x00\x00"

_NDJSON = ("JSONEachRow", "JSONLines", "JSONCompactEachRow", "JSONStringsEachRow", "NDJSON")
_BINARY = ("Native", "RowBinary", "Parquet", "Arrow", "ORC", "Avro", "MsgPack", "BSON", "Protobuf")


def content_type(fmt: str) -> str:
    """The media type of a format."""
    if fmt.startswith(("TabSeparated", "TSV")):
        return "text/tab-separated-values; charset=UTF-8"
    if fmt.startswith("CSV"):
        header = "present" if "WithNames" in fmt else "absent"
        return f"text/csv; charset=UTF-8; header={header}"
    if fmt.startswith(_NDJSON) or "JSONCompactStringsEachRow" in fmt:
        return "application/x-ndjson; charset=UTF-8"
    if "JSON" in fmt:
        return "application/json; charset=UTF-8"
    if fmt == "XML":
        return "application/xml; charset=UTF-8"
    if fmt.startswith(_BINARY):
        return "application/octet-stream"
    return "text/plain; charset=UTF-8"


def encoding(asked: Asked, enabled_by_default: bool) -> str:
    """The Content-Encoding of the answer, or the empty string."""
    wanted = asked.settings.get("enable_http_compression")
    enabled = enabled_by_default if wanted is None else wanted.lower() in ("1", "true")
    if not enabled:
        return ""
    accepted = {
        name.strip().lower()
        for name, _, weight in (
            item.partition(";") for item in asked.headers.get("accept-encoding", "").split(",")
        )
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    }
    return next((name for name in _ENCODINGS if name in accepted), "")


def engine_compression(name: str) -> str:
    """What the engine calls a Content-Encoding."""
    return _ENCODINGS.get(name, "none")


def is_empty(name: str, payload: bytes) -> bool:
    """Whether an encoded answer holds nothing, in a form that no decoder would take."""
    return name == "lz4" and payload == _EMPTY_LZ4


def common(asked: Asked, timezone: str, display_name: str) -> Headers:
    """The headers of every answer to a query."""
    wanted = asked.settings.get("session_timezone", "")
    return [
        (b"X-ClickHouse-Server-Display-Name", display_name.encode()),
        (b"X-ClickHouse-Query-Id", asked.query_id.encode("utf-8", "replace")),
        (
            b"X-ClickHouse-Timezone",
            (wanted if wanted.isprintable() and wanted else timezone).encode(),
        ),
        *_cors(asked),
    ]


def of_rows(fmt: str, content_encoding: str) -> Headers:
    """The headers that tell how the rows are written."""
    headers = [
        (b"Content-Type", content_type(fmt).encode()),
        (b"X-ClickHouse-Format", fmt.encode()),
    ]
    if content_encoding:
        headers.append((b"Content-Encoding", content_encoding.encode()))
    return headers


def summary(outcome: Outcome | None, result_bytes: int = 0) -> Headers:
    """X-ClickHouse-Summary; of a query that is still running nothing is known yet."""
    figures: dict[str, str] = {
        "read_rows": str(outcome.read_rows if outcome else 0),
        "read_bytes": str(outcome.read_bytes if outcome else 0),
        "written_rows": str(outcome.written_rows if outcome else 0),
        "written_bytes": str(outcome.written_bytes if outcome else 0),
        "total_rows_to_read": "0",
        "result_rows": str(outcome.result_rows if outcome else 0),
        "result_bytes": str(result_bytes),
        "elapsed_ns": str(outcome.elapsed_ns if outcome else 0),
    }
    return [(b"X-ClickHouse-Summary", json.dumps(figures, separators=(",", ":")).encode())]


def of_error(error: ClickHouseError) -> Headers:
    """The headers of an answer that is an error."""
    return [
        (b"Content-Type", b"text/plain; charset=UTF-8"),
        (b"X-ClickHouse-Exception-Code", str(error.code).encode()),
    ]


def late_error(tag: str, text: str) -> bytes:
    """How an error is told when the answer has begun: in a block found by the tag."""
    body = (text.rstrip("\n") + "\n").encode()
    mark = tag.encode()
    size = str(len(body)).encode()
    opening = b"\r\n__exception__\r\n" + mark + b"\r\n"
    return opening + body + size + b" " + mark + b"\r\n__exception__\r\n"


def with_length(headers: Sequence[tuple[bytes, bytes]], size: int) -> Headers:
    """The headers with the length of a body that is known."""
    return [*headers, (b"Content-Length", str(size).encode())]


def _cors(asked: Asked) -> Headers:
    if asked.settings.get("add_http_cors_header") == "1" and "origin" in asked.headers:
        return [(b"Access-Control-Allow-Origin", b"*")]
    return []
