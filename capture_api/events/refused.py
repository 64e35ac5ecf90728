"""Events that are too large for a record: left out of their request, and kept as evidence.

    topic   the main one, whatever the request says
    key, header   as of any record of that person
    value   one flat JSON object, `Evidence`, which the pipeline makes a dead letter of

The other events of the request are taken; the client is told which one is not. Invariant: evidence
is small however large the event was, and holds what it takes to find the sender's mistake.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

import msgspec

from capture_api.wire.pieces import pieces

RAW_BYTES = 64 << 10
"""Bytes of the event that are kept."""
NAME_LENGTH = 200
"""Characters of the event's name that are kept."""
TOO_LARGE = "too_large"


class RefusedEvent(msgspec.Struct, frozen=True):
    """What the client is told of one event that was left out."""

    index: int  # in the request, from 0
    uuid: str
    code: str
    detail: str


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """The record's value. Times are µs since 1970-01-01 UTC."""

    v: int
    refused: str
    uuid: str
    project_id: int
    event: str
    distinct_id: str
    received_at: int
    request_id: str
    bytes: int  # of the event, as it came
    sha256: str  # of the event, in hexadecimal
    raw: str  # base64 of the first RAW_BYTES of the event


_encoder = msgspec.json.Encoder()


def evidence_value(
    *,
    uuid: str,
    project_id: int,
    event: str,
    distinct_id: str,
    received_at: int,
    request_id: str,
    sent: bytes | memoryview,
) -> bytes:
    """The value of the record that stands for an event too large for one, as it was `sent`."""
    digest = sha256()
    for piece in pieces(memoryview(sent)):
        digest.update(piece)
    return _encoder.encode(
        Evidence(
            v=1,
            refused=TOO_LARGE,
            uuid=uuid,
            project_id=project_id,
            event=event[:NAME_LENGTH],
            distinct_id=distinct_id,
            received_at=received_at,
            request_id=request_id,
            bytes=len(sent),
            sha256=digest.hexdigest(),
            raw=b64encode(sent[:RAW_BYTES]).decode(),
        )
    )
