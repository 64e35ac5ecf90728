"""The query parameters of a capture request. Odd ones are passed over, never an error."""

from __future__ import annotations

from urllib.parse import parse_qsl

import msgspec

from capture_api.events.timestamps import sent_at_in_query

COMPRESSIONS = {
    "gzip": "gzip",
    "gzip-js": "gzip",
    "lz64": "lz64",
    "lz-string": "lz64",
    "base64": "base64",
    "b64": "base64",
}
"""What clients call a compression, and what it is."""


class Query(msgspec.Struct, frozen=True):
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
    """`gzip`, `lz64` or `base64` under any of their names, or nothing."""
    return COMPRESSIONS.get(name.strip().lower(), "")
