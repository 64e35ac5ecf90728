"""The shapes of a capture request's JSON, and the token it is sent with.

Three shapes arrive on every path: an array of events, `{api_key, batch: [events], sent_at}` and a
single event. One pass decodes each, leaving `properties` as the client's own bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import TypeVar

import msgspec
from msgspec import Raw

from capture_api.events.timestamps import sent_at_in_body
from capture_api.refusal import Refused, bad_request, bad_token, too_large
from capture_api.turns import AT_ONCE_BYTES, AT_ONCE_EVENTS, pause
from capture_api.wire.long_json import decode_long, is_array
from capture_api.wire.numbers import MAX_SUSPECTS, TOO_MANY_SUSPECTS, out_of_range
from capture_api.wire.pieces import count, holds
from capture_api.wire.skeleton import skeleton
from capture_api.wire.surrogates import has_surrogates, replace_lone_surrogates

MAX_EVENTS = 50_000
"""Events of one request: what lies within it fits into the producer's queue at once."""
MAX_OBJECTS = 1_000_000
"""JSON objects of one request, events and what is in them: each event parsed takes some memory,
and a large body could otherwise hold tens of millions of `{}`."""
TOKEN_BYTES = 64

ABSENT = Raw()
NULL = Raw(b"null")
TRUE = Raw(b"true")
FALSE = Raw(b"false")
_PECULIAR = (b'"$cookieless_mode"', b'"$ignore_sent_at"', b'"capture_internal"')
_PECULIAR_BONES = tuple(skeleton(mark) for mark in _PECULIAR)
T = TypeVar("T")
PERFORMANCE_EVENT = "$performance_event"
"""The name of events that nobody wants any more: PostHog passes over them, and so does Tidemark."""
_NO_PROPERTIES = Raw(b"{}")
BLANK = "nothing is in the body, or nothing is left once it is unpacked: put JSON into it"
"""What is said of a text that is blank."""


class Event(msgspec.Struct, gc=False):
    """One event as the client wrote it. None stands for absent and for null.

    What may be anything stays raw: made into objects, a small body could fill the memory.
    """

    event: str | None = None
    distinct_id: Raw = ABSENT
    dollar_distinct_id: Raw = msgspec.field(default=ABSENT, name="$distinct_id")
    uuid: str | None = None
    properties: Raw = _NO_PROPERTIES
    timestamp: str | int | float | None = None
    offset: int | float | None = None
    set: Raw = msgspec.field(default=ABSENT, name="$set")
    set_once: Raw = msgspec.field(default=ABSENT, name="$set_once")
    token: str | None = None
    dollar_token: str | None = msgspec.field(default=None, name="$token")
    api_key: str | None = None


class Envelope(Event, gc=False):
    """A batch, or a single event at the top level."""

    batch: list[Event] | None = None
    sent_at: Raw = ABSENT
    historical_migration: bool | None = None


class PropertiesHead(msgspec.Struct, gc=False):
    """The few properties that the edge itself may need."""

    token: Raw = ABSENT
    distinct_id: Raw = ABSENT
    cookieless_mode: Raw = msgspec.field(default=ABSENT, name="$cookieless_mode")
    ignore_sent_at: Raw = msgspec.field(default=ABSENT, name="$ignore_sent_at")
    capture_internal: Raw = ABSENT


class Payload(msgspec.Struct, frozen=True):
    """A request's events and what it says about all of them. `sent_at` is in µs.

    `peculiar` is whether the text names a property that the edge itself obeys, so that for nearly
    all requests no event's properties need a look. `one_line` is whether it has no line breaks.
    `text` is what all this was read from.
    """

    text: bytes
    token: str
    events: list[Event]
    sent_at: int | None
    historical: bool
    peculiar: bool
    one_line: bool


class _RawBatch(msgspec.Struct, gc=False):
    batch: list[Raw] | None = None


_raw_events_decoder = msgspec.json.Decoder(list[Raw])
_raw_batch_decoder = msgspec.json.Decoder(_RawBatch)
_events_decoder = msgspec.json.Decoder(list[Event])
_envelope_decoder = msgspec.json.Decoder(Envelope)
_text_decoder = msgspec.json.Decoder(str)
_head_decoder = msgspec.json.Decoder(PropertiesHead)


def parse_payload(text: bytes) -> Payload:
    """The payload of JSON text. Refuses (400, 401) what has no shape, no events or no token.

    One that holds nothing but events to be passed over needs no token, and has no events.
    """
    if len(text) > 2 * MAX_OBJECTS and count(text, b"{") > MAX_OBJECTS:
        raise _too_many(f"more than {MAX_OBJECTS} objects")
    try:
        decoded = _decode(text)
    except msgspec.ValidationError as error:
        raise bad_request(f"failed to hydrate events from request: {error}", "bad_shape") from None
    except msgspec.DecodeError as error:
        if is_blank(text):
            raise bad_request(f"request missing data payload: {BLANK}", "empty_payload") from None
        raise bad_request(f"failed to parse the request: {error}", "bad_json") from None
    except RecursionError:
        raise bad_request("failed to parse the request: nested too deeply", "too_deep") from None
    bones = skeleton(text)
    number = out_of_range(text, bones)
    if number is not None:
        raise bad_number(number, "bad_number")

    if isinstance(decoded, list):
        events, token, sent_at, historical = decoded, None, None, False
    elif decoded.batch is not None:
        events, token = decoded.batch, _own_token(decoded)
        sent_at = sent_at_in_body(text_of(decoded.sent_at))
        historical = bool(decoded.historical_migration)
    else:
        events, token, sent_at = [decoded], None, None
        historical = bool(decoded.historical_migration)

    if not events:
        raise bad_request("request holds no event", "no_events")
    if len(events) > MAX_EVENTS:
        raise _too_many(f"{len(events)} events")
    if events[0].event == PERFORMANCE_EVENT and all(
        event.event == PERFORMANCE_EVENT for event in events
    ):
        return Payload(text, "", [], None, historical, False, True)
    if len(events) > AT_ONCE_EVENTS:
        pause()
    if token is None:
        token = _token_of_events(events, is_long(text, events))
    peculiar = holds(bones, *_PECULIAR_BONES) and holds(text, *_PECULIAR)
    one_line = b"\n" not in text and b"\r" not in text  # quick, however long it is
    return Payload(text, valid_token(token), events, sent_at, historical, peculiar, one_line)


def is_blank(text: bytes) -> bool:
    """Whether there is nothing in the text. A long one has something, if only too many blanks."""
    return len(text) <= AT_ONCE_BYTES and not text.strip()


def is_long(text: bytes, events: Sized) -> bool:
    """Whether these events of a text are more work than is done at once."""
    return len(text) > AT_ONCE_BYTES or len(events) > AT_ONCE_EVENTS


def raw_events(text: bytes) -> list[Raw]:
    """The events of a request that could be read, each as the client wrote it."""
    events = leniently(_decode_raw, text)
    return [Raw(text)] if events is None else events


def bad_number(number: bytes, code: str) -> Refused:
    """400 for what `out_of_range` found."""
    failed = "failed to parse the request: "
    if number == TOO_MANY_SUSPECTS:
        return bad_request(
            f"{failed}more than {MAX_SUSPECTS} of its numbers have exponents of three digits, or "
            "hundreds of digits; send them as strings, or in smaller batches",
            code,
        )
    return bad_request(
        f"{failed}the number {_shortened(number)} is out of range; send it as a string",
        code,
        for_log=f"{failed}a number is out of range",
    )


def properties_head(properties: bytes | Raw) -> PropertiesHead:
    """The few properties that the edge may need; `properties` is a JSON object."""
    try:
        return _head_decoder.decode(properties)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"failed to parse properties: {error}", "bad_properties") from None


def text_of(value: Raw) -> str | None:
    """The string that the JSON value is, or None for anything else."""
    if len(value) < 2:
        return None
    try:
        return _text_decoder.decode(value)
    except msgspec.ValidationError:
        return None


def valid_token(token: str) -> str:
    """The token without blanks around it. Refuses (401) what cannot be one."""
    token = token.strip()
    if not token:
        reason = "empty"
    elif len(token) > TOKEN_BYTES:
        reason = "too_long"
    elif not token.isascii():
        reason = "not_ascii (send a project's token: `tidemark projects list` shows it)"
    elif token.startswith("phx_"):
        reason = "personal_api_key (send the project's token, which starts with phc_)"
    elif "\0" in token:
        reason = "null_byte"
    else:
        return token
    raise bad_token(f"API key is not valid: {reason}")


def _decode(text: bytes) -> list[Event] | Envelope:
    if len(text) > AT_ONCE_BYTES:
        return leniently(_decode_long, text)
    if text.lstrip()[:1] == b"[":
        return leniently(_events_decoder.decode, text)
    return leniently(_envelope_decoder.decode, text)


def _decode_long(text: bytes) -> list[Event] | Envelope:
    if is_array(text):
        return decode_long(text, _events_decoder, _events_decoder)
    return decode_long(text, _envelope_decoder, _events_decoder)


def _decode_raw(text: bytes) -> list[Raw] | None:
    if is_array(text):
        return decode_long(text, _raw_events_decoder, _raw_events_decoder)
    return decode_long(text, _raw_batch_decoder, _raw_events_decoder).batch


def leniently(decode: Callable[[bytes], T], text: bytes) -> T:
    """What `decode` makes of the JSON text; with U+FFFD for lone surrogates, if it must be."""
    try:
        return decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if not has_surrogates(text):
            raise
        return decode(replace_lone_surrogates(text))


def _shortened(number: bytes) -> str:
    text = number.decode()
    return text if len(text) <= 40 else f"{text[:40]}… of {len(text)} characters"


def _too_many(what: str) -> Refused:
    return too_large(
        f"maximum event size exceeded: {what} in one request, at most {MAX_EVENTS} events; send "
        "smaller batches"
    )


def _own_token(source: Event) -> str | None:
    for token in (source.api_key, source.token, source.dollar_token):
        if token is not None:
            return token
    return None


def _token_of_events(events: list[Event], long: bool) -> str:
    """The one token that the events themselves carry, at the top or in `properties`."""
    tokens = set()
    for event in events:
        if long:
            pause()
        if event.event == PERFORMANCE_EVENT:
            continue
        token = _own_token(event)
        if token is None:
            token = _token_in_properties(event)
        if token:
            tokens.add(token)
    if not tokens:
        raise bad_token(
            "event submitted without an api_key: send the project's token as `api_key` "
            "(`tidemark projects list` shows it)",
            "missing_token",
        )
    if len(tokens) > 1:
        raise bad_token("batch submitted with inconsistent api_key values")
    return tokens.pop()


def _token_in_properties(event: Event) -> str | None:
    """`properties.token`, if it is a string."""
    properties = bytes(event.properties)
    if b"token" not in properties or not properties.startswith(b"{"):
        return None
    return text_of(properties_head(properties).token)
