"""Events of protocol v1 become records: each by itself, so that one bad event costs no other.

    event, uuid ──checks──▶ drop with its details
                └─route──▶ drop by a rule, or topic and key ──▶ record

The route is where protection decides about an event, before its record is built. Invariant: every
event of the batch has a Result, and for those that are kept it holds if Kafka takes the record.
An event too large for a record is dropped, and a record tells of it as evidence.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Raw

from capture_api.events.record import (
    FLAG_COOKIELESS,
    FLAG_HISTORICAL,
    FLAG_PERSONLESS,
    FLAG_TIME_CLAMPED,
    RECORD_VERSION,
    RecordHead,
    encode_key,
    encode_value,
)
from capture_api.events.records import INTERNAL_ADDRESS, RECORD_MAX_BYTES, Record
from capture_api.events.refused import evidence_value
from capture_api.events.rfc3339 import parse_rfc3339
from capture_api.events.timestamps import bounded_time, clock_skew, usable_sent_at
from capture_api.events.uuids import NIL_UUID, mint_uuid
from capture_api.protection.routing import Route, Why
from capture_api.turns import pause
from capture_api.v1.batch import ESCAPED_LETTER, Batch, Event, Rarities
from capture_api.v1.options import NO_OPTIONS, Options, read_options
from capture_api.wire.depth import too_deep
from capture_api.wire.keys import too_many_keys
from capture_api.wire.numbers import out_of_range
from capture_api.wire.payload import PERFORMANCE_EVENT, is_long, raw_events
from capture_api.wire.skeleton import skeleton

EVENT_NAME_BYTES = 200
DISTINCT_ID_BYTES = 200

ILLEGAL_DISTINCT_IDS = frozenset(
    {
        *("0", NIL_UUID, "[object object]", "nan", "none", "null", "undefined", "true", "false"),
        *("id", "distinct_id", "distinctid", "email", "user", "guest", "anonymous"),
        *("anonymous-user", "not_authenticated", "backend", "system"),
    }
)
"""Lower case. Sent by mistake for many people at once, so no person is made of them."""

_SPREAD = frozenset({Why.HOT_KEY, Why.RULE_OVERFLOW})
_LONGEST_ILLEGAL = max(map(len, ILLEGAL_DISTINCT_IDS))
_encode = msgspec.json.encode
_members_decoder = msgspec.json.Decoder(dict[str, Raw])
_INJECTED_KEYS = (
    *(b'"$lib"', b'"$lib_version"', b'"$session_id"', b'"$window_id"', b'"$cookieless_mode"'),
    *(b'"$ignore_sent_at"', b'"$product_tour_id"', b'"$process_person_profile"'),
)


class Result(NamedTuple):
    """What the client is told about one event."""

    result: str  # ok, warning, drop or retry
    details: str = ""


OK = Result("ok")
PERSONLESS = Result("warning", "person_processing_disabled")
RULED_OUT = Result("drop", "event_restriction_drop")
OVER_QUOTA = Result("drop", "billing_limit_exceeded")
TOO_BIG = Result("drop", "event_too_big")
NOT_PERSISTED = Result("retry", "not_persisted")


class Request(msgspec.Struct, frozen=True, gc=False):
    """What the request itself says about every event in it. Times in µs."""

    token: str
    received_at: int
    request_id: str
    request_time: int
    ip: str
    user_agent: str
    sdk: str
    library: bytes
    rarities: Rarities


class Built(NamedTuple):
    """The records, the event that each is of, and the results if Kafka takes every record."""

    records: list[Record]
    indices: list[int | None]  # None: of evidence, which changes no result
    results: list[Result]
    sent_events: list[Raw]  # as they came, once evidence of one is needed


def build_records(
    batch: Batch, uuids: list[str], project_id: int, request: Request, route: Route
) -> Built:
    """The records of the batch, in the order of its events; dropped ones have their result.

    `route` says where each goes, or that it is dropped.
    """
    built = Built([], [], [], [])
    rarities, library = request.rarities, request.library
    sent_at = usable_sent_at(request.request_time)
    skew = clock_skew(sent_at, request.received_at)
    batch_flags = FLAG_HISTORICAL if batch.historical_migration else 0
    rules, hot_keys = route.rules, route.hot_keys
    ip = INTERNAL_ADDRESS if batch.capture_internal else request.ip
    long = is_long(rarities.text, uuids)
    for index, (event, uuid) in enumerate(zip(batch.batch, uuids, strict=True)):
        if long:
            pause()
        distinct_id = event.distinct_id.strip()
        properties = bytes(event.properties)
        written = parse_rfc3339(event.timestamp)
        fault = _fault(event, distinct_id, written, properties, rarities.out_of_range)
        if "\0" in distinct_id:
            distinct_id = distinct_id.replace("\0", "\ufffd")
        if uuid == NIL_UUID:  # it stands for "none"; kept, it would make duplicates of its events
            uuid = mint_uuid(request.received_at)
        options = None if fault else read_options(event.options)
        if options is None or written is None:
            built.results.append(Result("drop", fault or "invalid_options"))
            if fault == TOO_BIG.details:
                told = read_options(event.options) or NO_OPTIONS
                key = encode_key(request.token, ip if told.cookieless_mode else distinct_id)
                _add_evidence(
                    built, index, event, uuid, distinct_id, project_id, request, route, key
                )
            continue

        flags, result = batch_flags, OK
        if len(distinct_id) <= _LONGEST_ILLEGAL and distinct_id.lower() in ILLEGAL_DISTINCT_IDS:
            result = PERSONLESS
        if options.cookieless_mode:
            flags |= FLAG_COOKIELESS
        key = encode_key(request.token, ip if options.cookieless_mode else distinct_id)
        topic: str = route.topic
        record_key: bytes | None = key
        if rules:
            place = route.place(key, event.event, distinct_id)
            if place.topic is None:
                built.results.append(RULED_OUT)
                continue
            topic, record_key = place.topic, place.key
            if place.why in _SPREAD:
                result = PERSONLESS
        elif hot_keys is not None and hot_keys.is_hot(key):
            topic, record_key = route.hot(key)
            if topic != route.topic:
                result = PERSONLESS
        if result is PERSONLESS:
            flags |= FLAG_PERSONLESS

        timestamp, clamped = bounded_time(
            written if options.disable_skew_correction else written - skew, request.received_at
        )
        if clamped:
            flags |= FLAG_TIME_CLAMPED
        value = encode_value(
            RecordHead(
                RECORD_VERSION,
                uuid,
                project_id,
                event.event,
                distinct_id,
                timestamp,
                event.timestamp,
                None,
                sent_at,
                request.received_at,
                ip,
                request.user_agent,
                request.sdk,
                request.request_id,
                flags,
            ),
            _with_members(properties, _injected(event, options, library), library, rarities),
        )
        if len(value) + len(key) > RECORD_MAX_BYTES:
            built.results.append(TOO_BIG)
            _add_evidence(built, index, event, uuid, distinct_id, project_id, request, route, key)
            continue
        built.records.append((topic, value, record_key))
        built.indices.append(index)
        built.results.append(result)
    return built


def _fault(
    event: Event, distinct_id: str, written: int | None, properties: bytes, numbers: bool
) -> str:
    """The details to drop the event with, or nothing. The order is the protocol's.

    `numbers` is whether those of this event are to be looked at.
    """
    if event.event == PERFORMANCE_EVENT:
        return "dropped_performance_event"
    if not event.event:
        return "missing_event_name"
    if _longer(event.event, EVENT_NAME_BYTES):
        return "event_name_too_long"
    if not distinct_id:
        return "missing_distinct_id"
    if _longer(distinct_id, DISTINCT_ID_BYTES):
        return "distinct_id_too_large"
    if written is None:
        return "invalid_event_timestamp"
    if not properties.startswith(b"{"):
        return "malformed_event_properties"
    if len(properties) > RECORD_MAX_BYTES:
        return "event_too_big"
    if too_deep(properties) or too_many_keys(properties):
        return "malformed_event_properties"
    if numbers and out_of_range(properties, skeleton(properties)) is not None:
        return "malformed_event_properties"
    return ""


def _add_evidence(
    built: Built,
    index: int,
    event: Event,
    uuid: str,
    distinct_id: str,
    project_id: int,
    request: Request,
    route: Route,
    key: bytes,
) -> None:
    """Let a record tell of an event too large for one."""
    if not built.sent_events:
        built.sent_events.extend(raw_events(request.rarities.text))
        pause()
    value = evidence_value(
        uuid=uuid,
        project_id=project_id,
        event=event.event,
        distinct_id=distinct_id,
        received_at=request.received_at,
        request_id=request.request_id,
        sent=memoryview(built.sent_events[index]),
    )
    built.records.append((route.router.topics.events, value, key))
    built.indices.append(None)


def _longer(text: str, limit: int) -> bool:
    """Whether the text has more bytes of UTF-8 than the limit."""
    return len(text) > limit or (not text.isascii() and len(text.encode()) > limit)


def _injected(event: Event, options: Options, library: bytes) -> bytes:
    """What the protocol keeps beside the properties, as further members of their object."""
    if event.session_id is None and event.window_id is None and options is NO_OPTIONS:
        return library  # nearly always, from servers
    members = []
    if event.session_id is not None:
        members.append(b'"$session_id":' + _encode(event.session_id))
    if event.window_id is not None:
        members.append(b'"$window_id":' + _encode(event.window_id))
    if options.cookieless_mode is not None:
        members.append(b'"$cookieless_mode":' + _encode(options.cookieless_mode))
    if options.disable_skew_correction is not None:
        members.append(b'"$ignore_sent_at":' + _encode(options.disable_skew_correction))
    if options.product_tour_id is not None:
        members.append(b'"$product_tour_id":' + _encode(options.product_tour_id))
    if options.process_person_profile is not None:
        members.append(b'"$process_person_profile":' + _encode(options.process_person_profile))
    if library:
        members.append(library)
    return b",".join(members)


def _with_members(properties: bytes, members: bytes, library: bytes, rarities: Rarities) -> bytes:
    """The JSON object with these members at its end; they take the place of its own."""
    if not members:
        return properties
    if rarities.library or (members is not library and b'"$' in properties):
        properties = _without(properties, members)
    empty = properties[1:2] != b'"' and properties[1:].lstrip()[:1] == b"}"
    return b"".join((properties[:-1], b"" if empty else b",", members, b"}"))


def _without(properties: bytes, members: bytes) -> bytes:
    """The JSON object without keys that are also among the members; written anew only then."""
    if not (
        any(key in properties and key in members for key in _INJECTED_KEYS)
        or ESCAPED_LETTER.search(properties)
    ):
        return properties
    try:
        kept = _members_decoder.decode(properties)
        injected = _members_decoder.decode(b"{" + members + b"}")
    except (msgspec.DecodeError, RecursionError):  # a lone surrogate in a key: no key of ours
        return properties
    if kept.keys().isdisjoint(injected):
        return properties
    return _encode({key: value for key, value in kept.items() if key not in injected})
