"""The record: what the capture API writes to Kafka and the batch pipeline reads.

    topic   `events`
    key     `token:distinct_id`, UTF-8: all events of one person keep their order; of visitors
            without cookies, who all share one distinct_id, `token:ip`
    header  `tidemark-record: 2`, the version of the value's layout
    value   two lines of JSON: the head below as an array, its fields in that order, without
            blanks; then `properties`

The head holds only scalars. `properties` is the client's own JSON object, byte for byte except
that line breaks between tokens become blanks and lone surrogates U+FFFD. So the value's one line
break is where the head ends, a reader finds the client's bytes without parsing them, and the
heads of many records are a table that any reader of CSV takes in one pass.

Layout 1, one flat JSON object of the head's fields by name and `properties`, is still read.
"""

from __future__ import annotations

import msgspec

RECORD_VERSION = 2
VERSION_HEADER = "tidemark-record"

# Bits of `flags`.
FLAG_HISTORICAL = 1
"""Sent as a historical migration."""
FLAG_DISTINCT_ID_CUT = 2
"""The client's distinct_id was longer than DISTINCT_ID_LENGTH characters."""
FLAG_TIME_CLAMPED = 4
"""The client's time lay too far in the future, or before EARLIEST_US; the time of receipt stands
in its place."""
FLAG_COOKIELESS = 8
"""Sent in cookieless mode: the distinct_id stands for nobody, and the key is `token:ip`."""
FLAG_PERSONLESS = 16
"""No person is to be made of this event, or changed by it: the distinct_id stands for many."""

EARLIEST_US = -2_208_988_800_000_000  # 1900-01-01
LATEST_US = 10_413_791_999_999_999  # 2299-12-31
"""What a time of a record lies within, in µs since 1970: what ClickHouse can hold."""

DISTINCT_ID_LENGTH = 200
"""Characters of a distinct_id that are kept."""
CLIENT_TIMESTAMP_LENGTH = 200
"""Characters of the client's own text of a time that are kept."""


class RecordHead(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The first line of a record's value, in its order on the wire.

    Times are whole microseconds since 1970-01-01 UTC; `client_timestamp` alone is the client's
    own text. None stands for what the client did not send.
    """

    v: int
    uuid: str  # 36 characters, lower case
    project_id: int
    event: str
    distinct_id: str
    timestamp: int  # when it happened, after correcting the client's clock
    client_timestamp: str | None
    offset_ms: int | None  # age of the event when the client sent it
    sent_at: int | None  # the client's clock when it sent the request
    received_at: int  # our clock when the request arrived
    ip: str
    user_agent: str
    sdk: str  # `library/version` where the request says it, else empty
    request_id: str  # the receipt the client was given
    flags: int


_encoder = msgspec.json.Encoder()


def encode_value(head: RecordHead, properties: bytes, one_line: bool = False) -> bytes:
    """The record's value. `properties` is a valid JSON object in UTF-8, as the client sent it.

    `one_line` is whether it is known to have no line breaks.
    """
    # Valid JSON has raw line breaks only between tokens, where a blank means the same.
    if not one_line and (b"\n" in properties or b"\r" in properties):
        properties = properties.replace(b"\n", b" ").replace(b"\r", b" ")
    return b"".join((_encoder.encode(head), b"\n", properties))


def encode_key(token: str, distinct_id: str) -> bytes:
    """The record's key; for a visitor without cookies, of the address instead of the id."""
    return f"{token}:{distinct_id}".encode()


Headers = list[tuple[str, str | bytes | None]]

VERSION_HEADERS: Headers = [(VERSION_HEADER, str(RECORD_VERSION).encode())]
_LAYOUT_1_HEADERS: Headers = [(VERSION_HEADER, b"1")]


def headers_of(value: bytes) -> Headers:
    """The headers of a record: the layout of its value, whoever wrote it.

    Evidence of events that are too large is of layout 1, and so is what an older spool holds.
    """
    return VERSION_HEADERS if value.startswith(b"[") else _LAYOUT_1_HEADERS
