"""An exported event becomes the record that the edge would have made of it when it was sent.

    a line of PostHog's export   {"uuid", "event", "distinct_id", "properties", "timestamp",
                                  "created_at", "elements_chain", "person_id", …}
    uuid, event, distinct_id, timestamp   the head's, by the edge's own rules
    created_at                   `received_at`: when PostHog took the event in
    properties                   as they are, JSON text or JSON in a string (as Parquet has it)
    elements_chain, set, set_once   back into the properties, where clients send them, if they are
                                 not there: `$elements_chain`, `$set`, `$set_once`
    all else                     as it is, in the property `$exported`; `_inserted_at` is left out

`timestamp` was corrected when the event was taken in, and is not corrected again. Unlike a client,
an export names each event's uuid and time: what does not is refused, for nobody could tell it from
what was imported before. A pure function: the same line gives the same record.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from capture_api.events.record import (
    DISTINCT_ID_LENGTH,
    FLAG_DISTINCT_ID_CUT,
    FLAG_HISTORICAL,
    RECORD_VERSION,
    RecordHead,
    encode_value,
)
from capture_api.events.records import (
    RECORD_MAX_BYTES,
    event_distinct_id,
    event_name,
    event_properties,
    event_uuid,
)
from capture_api.events.timestamps import parse_time
from capture_api.refusal import bad_request, too_large
from capture_api.wire.numbers import out_of_range
from capture_api.wire.payload import ABSENT, NULL, Event, bad_number, text_of
from capture_api.wire.skeleton import skeleton
from capture_api.wire.surrogates import has_surrogates, replace_lone_surrogates

MISSING = "missing_exported_field"
BAD_TIME = "bad_time"

_EXPORTED = "$exported"
_EMPTY = (ABSENT, NULL, Raw(b'""'))
_LEFT_OUT = "_inserted_at"  # of the export's own book-keeping, as its documentation says

_fields_decoder = msgspec.json.Decoder(dict[str, Raw])
_time_decoder = msgspec.json.Decoder(str | int | float)


class _Sender(msgspec.Struct, gc=False):
    """What the properties say of who sent the event."""

    ip: Raw = msgspec.field(default=ABSENT, name="$ip")
    user_agent: Raw = msgspec.field(default=ABSENT, name="$raw_user_agent")


_sender_decoder = msgspec.json.Decoder(_Sender)


def exported_value(line: bytes, project_id: int, begun_at: int) -> bytes:
    """The record's value of a line, one JSON object, in the project it is imported into.

    `begun_at` (µs) stands for the time of receipt where the export does not say it. Raises
    msgspec.DecodeError for what is no JSON object, Refused for what the edge would not take.
    """
    fields = _fields(line)
    number = out_of_range(line, skeleton(line))
    if number is not None:
        raise bad_number(number, "bad_number")
    properties = _as_object(fields.pop("properties", NULL))
    event = Event(
        event=text_of(fields.pop("event", NULL)),
        distinct_id=fields.pop("distinct_id", NULL),
        uuid=text_of(fields.pop("uuid", NULL)) or text_of(fields.pop("id", NULL)),
        properties=properties,
        set=_unless_there(fields, "set", properties),
        set_once=_unless_there(fields, "set_once", properties),
    )
    uuid = event_uuid(event)
    if uuid is None:
        raise bad_request("the line names no uuid", MISSING)
    timestamp = _time(fields, "timestamp")
    if timestamp is None:
        raise bad_request("the line names no timestamp", MISSING)
    received_at = _time(fields, "created_at")
    distinct_id = event_distinct_id(event)
    flags = FLAG_HISTORICAL
    if len(distinct_id) > DISTINCT_ID_LENGTH:
        distinct_id = distinct_id[:DISTINCT_ID_LENGTH]
        flags |= FLAG_DISTINCT_ID_CUT
    name = event_name(event)
    text = _with_the_rest(event_properties(event), fields)
    ip, user_agent = _sender(fields, text)
    value = encode_value(
        RecordHead(
            RECORD_VERSION,
            uuid,
            project_id,
            name,
            distinct_id,
            timestamp,
            client_timestamp=None,
            offset_ms=None,
            sent_at=None,
            received_at=begun_at if received_at is None else received_at,
            ip=ip,
            user_agent=user_agent,
            sdk="",
            request_id="",
            flags=flags,
        ),
        text,
    )
    if len(value) > RECORD_MAX_BYTES:
        raise too_large(f"it makes a record of {len(value)} bytes, at most {RECORD_MAX_BYTES}")
    return value


def _fields(line: bytes) -> dict[str, Raw]:
    try:
        return _fields_decoder.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if not has_surrogates(line):
            raise
        return _fields_decoder.decode(replace_lone_surrogates(line))


def _as_object(value: Raw) -> Raw:
    """A JSON object, also where it comes as JSON in a string."""
    text = text_of(value)
    if text is None:
        return value
    inside = text.strip().encode()
    if has_surrogates(inside):
        inside = replace_lone_surrogates(inside)
    return Raw(inside) if inside else NULL


def _unless_there(fields: dict[str, Raw], name: str, properties: Raw) -> Raw:
    """What clients send beside the properties, where these do not have it; else it is as it was."""
    value = _as_object(fields.get(name, NULL))
    if not bytes(value).startswith(b"{") or f'"${name}"'.encode() in bytes(properties):
        return ABSENT
    del fields[name]
    return value


def _time(fields: dict[str, Raw], name: str) -> int | None:
    value = fields.pop(name, NULL)
    if value in _EMPTY:
        return None
    try:
        time = parse_time(str(_time_decoder.decode(value)))
    except msgspec.DecodeError:
        time = None
    if time is None:
        raise bad_request(f"`{name}` is no time: {bytes(value)[:64]!r}", BAD_TIME)
    return time


def _with_the_rest(properties: bytes, fields: dict[str, Raw]) -> bytes:
    """The properties with what else the line says; `fields` loses what has found its place."""
    chain = fields.pop("elements_chain", NULL)
    if chain not in _EMPTY and b'"$elements_chain"' not in properties:
        properties = _with(properties, "$elements_chain", chain)
    rest = {
        name: value
        for name, value in fields.items()
        if name not in (_LEFT_OUT, "ip") and value not in _EMPTY
    }
    if rest:
        properties = _with(properties, _EXPORTED, Raw(msgspec.json.encode(rest)))
    return properties


def _with(properties: bytes, name: str, value: Raw) -> bytes:
    separator = b"," if properties[1:-1].strip() else b""
    return b"".join((properties[:-1], separator, b'"', name.encode(), b'":', value, b"}"))


def _sender(fields: dict[str, Raw], properties: bytes) -> tuple[str, str]:
    """The address and the browser of who sent it, as far as the export says it."""
    sender = _Sender()
    if b'"$ip"' in properties or b'"$raw_user_agent"' in properties:
        try:
            sender = _sender_decoder.decode(properties)
        except msgspec.DecodeError:  # whoever reads the record says what is wrong with it
            sender = _Sender()
    ip = text_of(fields.get("ip", NULL)) or text_of(sender.ip) or ""
    return ip, text_of(sender.user_agent) or ""
