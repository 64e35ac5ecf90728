"""The query parameters of a capture request. Odd ones are passed over, never an error."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from capture_api.events.timestamps import sent_at_in_query

GZIP_NAMES = frozenset({"gzip", "gzip-js"})
LZ64_NAMES = frozenset({"lz64", "lz-string"})


@dataclass(frozen=True, slots=True)
class Query:
    """What the query says. `data` is the payload where it travels in the query."""

    compression: str = ""
    sent_at: int | None = None
    beacon: bool = False
    data: str = ""
    token: str = ""


_NOTHING = Query()


def parse_query(query_string: bytes) -> Query:
    """The parameters Tidemark uses; the last of several wins."""
    if not query_string:
        return _NOTHING
    given = dict(parse_qsl(query_string.decode("latin-1"), encoding="utf-8", errors="replace"))
    return Query(
        compression=known_compression(given.get("compression", "")),
        sent_at=sent_at_in_query(given.get("_") or given.get("sent_at") or ""),
        beacon=given.get("beacon", "").strip() == "1",
        data=given.get("data", ""),
        token=given.get("token", "") or given.get("api_key", ""),
    )


def known_compression(name: str) -> str:
    """`gzip` or `lz64` under any of their names, or nothing: base64 shows by itself."""
    name = name.strip().lower()
    if name in GZIP_NAMES:
        return "gzip"
    return "lz64" if name in LZ64_NAMES else ""
