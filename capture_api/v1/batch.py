"""The body of a v1 request: `{created_at, batch: [event, …]}` from JSON text, and its own rules.

What breaks a rule here refuses the whole request (400): without a shape, or without a uuid that
is the event's own, no result could be given for an event. Rules about single events are in
`events.py`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
from msgspec import Raw

from capture_api.events.rfc3339 import parse_rfc3339
from capture_api.events.uuids import normal_uuid
from capture_api.refusal import bad_request, too_large
from capture_api.turns import AT_ONCE_BYTES, AT_ONCE_EVENTS, pause
from capture_api.wire.long_json import decode_long
from capture_api.wire.numbers import TOO_MANY_SUSPECTS, out_of_range
from capture_api.wire.payload import ABSENT, BLANK, MAX_EVENTS, bad_number, is_blank, leniently
from capture_api.wire.pieces import holds
from capture_api.wire.skeleton import skeleton
from capture_api.wire.utf8 import HINT, check_utf8

_NO_PROPERTIES = Raw(b"{}")
_SHOWN_CHARACTERS = 100


class Event(msgspec.Struct, gc=False):
    """One event as the client wrote it; what may be anything stays raw."""

    event: str
    uuid: str
    distinct_id: str
    timestamp: str
    session_id: str | None = None
    window_id: str | None = None
    options: Raw = ABSENT
    properties: Raw = _NO_PROPERTIES


class Batch(msgspec.Struct, gc=False):
    """A request's body. What it may not say is None."""

    created_at: str
    batch: list[Event]
    historical_migration: bool | None = None
    capture_internal: bool | None = None


class Rarities(NamedTuple):
    """A batch's text, and what in it is so rare that nearly no event need be searched for it."""

    text: bytes
    out_of_range: bool  # a number that no double can hold
    library: bool  # keys such as the library's, or spelled so that they may be


ESCAPED_LETTER = re.compile(rb"\\u00(?:24|5[fF]|6[1-9a-fA-F]|7[0-9aA])")
"""What a key of properties may be spelled with, besides its own letters."""

_LIBRARY_BONES = (skeleton(b'"$lib"'), skeleton(b'"$lib_version"'))
_decoder = msgspec.json.Decoder(Batch)
_events_decoder = msgspec.json.Decoder(list[Event])
_LONGEST_LETTER = 6


def parse_batch(text: bytes) -> Batch:
    """The batch of JSON text. Refuses (400, 413) what is none, is empty or has no created_at."""
    try:
        batch = _decode(text)
    except UnicodeDecodeError as error:
        raise bad_request(
            f"failed to parse the request: it is not valid UTF-8 (byte {error.start}); {HINT}",
            "request_parsing_error",
        ) from None
    except msgspec.DecodeError as error:
        if is_blank(text):
            raise bad_request(f"the request has no body: {BLANK}", "empty_body") from None
        raise bad_request(
            f"failed to parse the request: {error}", "request_parsing_error"
        ) from None
    except RecursionError:
        raise bad_request(
            "failed to parse the request: nested too deeply", "request_parsing_error"
        ) from None
    if not batch.batch:
        raise bad_request("the request's `batch` is empty", "empty_batch")
    if len(batch.batch) > MAX_EVENTS:
        raise too_large(
            f"{len(batch.batch)} events in one request, at most {MAX_EVENTS}; send smaller batches"
        )
    if len(batch.batch) > AT_ONCE_EVENTS:
        pause()
    if parse_rfc3339(batch.created_at) is None:
        what = "invalid batch: `created_at` must be an RFC 3339 time"
        shown = batch.created_at[:_SHOWN_CHARACTERS]
        raise bad_request(f"{what}, not {shown!r}", "invalid_batch", for_log=what)
    return batch


def read_rarities(text: bytes) -> Rarities:
    """The rarities of a batch's text. Refuses (400) one with too many numbers to judge."""
    bones = skeleton(text)
    number = out_of_range(text, bones)
    if number == TOO_MANY_SUSPECTS:
        raise bad_number(number, "request_parsing_error")
    library = holds(bones, *_LIBRARY_BONES) and holds(text, b'"$lib')
    if not library and holds(text, b"\\"):
        library = _has_escaped_letter(text)
    return Rarities(text, number is not None, library)


def event_uuids(events: list[Event]) -> list[str]:
    """The uuid of each event in its usual spelling. Refuses (400) if one lacks its own."""
    uuids = []
    for index, event in enumerate(events):
        if index % AT_ONCE_EVENTS == AT_ONCE_EVENTS - 1:
            pause()
        uuid = normal_uuid(event.uuid)
        if uuid is None:
            if event.uuid.strip():
                what = f"event {index}: `uuid` is not a UUID"
                shown = event.uuid[:_SHOWN_CHARACTERS]
                raise bad_request(f"{what}: {shown!r}", "invalid_event_uuid", for_log=what)
            raise bad_request(f"event {index}: submitted without a uuid", "missing_event_uuid")
        uuids.append(uuid)
    if len(set(uuids)) < len(uuids):
        seen: set[str] = set()
        for index, uuid in enumerate(uuids):
            if uuid in seen:
                raise bad_request(
                    f"event {index}: the uuid {uuid} stands twice in the batch",
                    "duplicate_event_uuid",
                )
            seen.add(uuid)
    return uuids


def _has_escaped_letter(text: bytes) -> bool:
    if len(text) <= AT_ONCE_BYTES:
        return ESCAPED_LETTER.search(text) is not None
    for start in range(0, len(text), AT_ONCE_BYTES):
        if ESCAPED_LETTER.search(text, start, start + AT_ONCE_BYTES + _LONGEST_LETTER - 1):
            return True
        pause()
    return False


def _decode(text: bytes) -> Batch:
    check_utf8(text)  # the reader leaves strings in raw parts unchecked
    if len(text) > AT_ONCE_BYTES:
        return leniently(_decode_long, text)
    return leniently(_decoder.decode, text)


def _decode_long(text: bytes) -> Batch:
    return decode_long(text, _decoder, _events_decoder)
