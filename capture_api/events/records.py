"""Events become records: every rule about a single event is applied here, or the request refused.

Nothing is produced here. A request is one unit: the first event that breaks a rule refuses the
whole of it, before any record has left. Only an event that is too large is left out on its own,
and a record that tells of it takes its place.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from capture_api.events.person_properties import NOTHING, splice_person_properties
from capture_api.events.record import (
    CLIENT_TIMESTAMP_LENGTH,
    DISTINCT_ID_LENGTH,
    FLAG_COOKIELESS,
    FLAG_DISTINCT_ID_CUT,
    FLAG_HISTORICAL,
    FLAG_TIME_CLAMPED,
    RECORD_VERSION,
    RecordHead,
    encode_key,
    encode_value,
)
from capture_api.events.refused import RefusedEvent, evidence_value
from capture_api.events.timestamps import clock_skew, event_time
from capture_api.events.uuids import NIL_UUID, MintSeed, mint_uuids, normal_uuid, uuid_time
from capture_api.protection.routing import Route
from capture_api.refusal import Refused, bad_request, too_large
from capture_api.turns import pause
from capture_api.wire.depth import DEPTH_LIMIT, too_deep
from capture_api.wire.keys import MAX_KEYS, too_many_keys
from capture_api.wire.payload import (
    ABSENT,
    FALSE,
    NULL,
    PERFORMANCE_EVENT,
    TRUE,
    Event,
    Payload,
    PropertiesHead,
    is_long,
    properties_head,
    raw_events,
    text_of,
)

RECORD_MAX_BYTES = 999_000
"""Key and value of one record: Kafka's usual limit of 1,000,000 less its own framing."""

Record = tuple[str, bytes, bytes | None]
"""A topic, a value and a key, in the order that producing takes them."""

ODD_DISTINCT_ID_BYTES = 512
"""JSON of a distinct_id that is not a string; only its first 200 characters are kept anyway."""
ODD_DISTINCT_ID_DEPTH = 8
"""Levels that it may have: writing it anew, with its keys in order, takes time for each."""

INTERNAL_ADDRESS = "127.0.0.1"
"""What stands for the address of events that say a service of the operator's own sent them."""

_INT64_MS = (2**63 - 1) // 1000


class Request(msgspec.Struct, frozen=True):
    """What the request itself says about every event in it. Times in µs."""

    received_at: int
    request_id: str
    ip: str
    user_agent: str
    sdk: str
    sent_at: int | None  # of the query; a batch's own goes first
    engage: bool  # events without a name are `$identify`
    mint_seed: MintSeed | None = None  # of a request that a gateway may send twice


def build_records(
    payload: Payload,
    project_id: int,
    request: Request,
    route: Route,
    left_out: list[RefusedEvent],
) -> list[Record]:
    """The records of the request, in the order of its events; empty if none are to be kept.

    `route` says where each goes, or that it is dropped. `left_out` gets the events that are too
    large, each of which has a record as evidence instead.
    """
    events = payload.events
    sent_at = payload.sent_at if payload.sent_at is not None else request.sent_at
    skew = clock_skew(sent_at, request.received_at)
    common_flags = FLAG_HISTORICAL if payload.historical else 0
    rules, hot_keys = route.rules, route.hot_keys
    received_at, token = request.received_at, payload.token
    minted: list[str] = []  # by position, once an event needs one
    sent_events: list[Raw] = []  # as they came, once evidence of one is needed
    records: list[Record] = []
    long = is_long(payload.text, events)
    for index, event in enumerate(events):
        if long:
            pause()
        if event.event == PERFORMANCE_EVENT:
            continue
        try:
            uuid = event_uuid(event)
            if uuid is None:
                if not minted:
                    minted = mint_uuids(received_at, len(events), request.mint_seed)
                uuid = minted[index]
            properties = event_properties(event)
            head = _head(event, properties, payload.peculiar)
            flags = common_flags
            distinct_id = event_distinct_id(event, head)
            if len(distinct_id) > DISTINCT_ID_LENGTH:
                distinct_id = distinct_id[:DISTINCT_ID_LENGTH]
                flags |= FLAG_DISTINCT_ID_CUT
            text = event.timestamp
            if text is not None and not isinstance(text, str):
                text = msgspec.json.encode(text).decode()
            ignore_sent_at = head is not None and head.ignore_sent_at == TRUE
            offset = made_at = sent = None
            if event.offset is not None:
                offset = _offset(event.offset)
                made_at = uuid_time(uuid) if event.uuid else None
                sent = None if ignore_sent_at else sent_at
            timestamp, clamped = event_time(
                text=text,
                offset_ms=offset,
                skew=0 if ignore_sent_at else skew,
                received_at=received_at,
                made_at=made_at,
                sent_at=sent,
            )
            if clamped:
                flags |= FLAG_TIME_CLAMPED
            ip = request.ip
            person = distinct_id
            if head is not None:
                if head.capture_internal is not ABSENT:
                    ip = INTERNAL_ADDRESS
                if head.cookieless_mode == TRUE:
                    flags |= FLAG_COOKIELESS
                    person = ip
            key = encode_key(token, person)
            name = event_name(event, request.engage)
            topic: str = route.topic
            record_key: bytes | None = key
            if rules:
                place = route.place(key, name, distinct_id)
                if place.topic is None:
                    continue
                topic, record_key = place.topic, place.key
            elif hot_keys is not None and hot_keys.is_hot(key):
                topic, record_key = route.hot(key)
            value = encode_value(
                RecordHead(
                    RECORD_VERSION,
                    uuid,
                    project_id,
                    name,
                    distinct_id,
                    timestamp,
                    text if text is None else text[:CLIENT_TIMESTAMP_LENGTH],
                    offset,
                    sent_at,
                    received_at,
                    ip,
                    request.user_agent,
                    request.sdk,
                    request.request_id,
                    flags,
                ),
                properties,
                payload.one_line,
            )
            size = len(key) + len(value)
            if size > RECORD_MAX_BYTES:
                raise _too_large(f"it makes a record of {size} bytes")
            records.append((topic, value, record_key))
        except Refused as refused:
            if refused.status != 413:
                raise _of_event(refused, index, events) from None
            assert uuid is not None  # only what comes after it raises 413
            if not sent_events:
                sent_events = raw_events(payload.text)
            pause()
            sent_event = memoryview(sent_events[index])
            try:
                record = _evidence(event, sent_event, uuid, payload, project_id, request, route)
            except Refused as worse:
                raise _of_event(worse, index, events) from None
            records.append(record)
            left_out.append(RefusedEvent(index, uuid, refused.code, refused.detail))
    return records


def _of_event(refused: Refused, index: int, events: list[Event]) -> Refused:
    return refused.of_event(index) if len(events) > 1 else refused


def _evidence(
    event: Event,
    sent_event: memoryview,
    uuid: str,
    payload: Payload,
    project_id: int,
    request: Request,
    route: Route,
) -> Record:
    """The record that tells of an event too large for one; the other rules hold for it, too."""
    head = _head(event, _large_object(event), payload.peculiar)
    distinct_id = event_distinct_id(event, head)[:DISTINCT_ID_LENGTH]
    person = distinct_id
    if head is not None and head.cookieless_mode == TRUE:
        person = request.ip if head.capture_internal is ABSENT else INTERNAL_ADDRESS
    value = evidence_value(
        uuid=uuid,
        project_id=project_id,
        event=event_name(event, request.engage),
        distinct_id=distinct_id,
        received_at=request.received_at,
        request_id=request.request_id,
        sent=sent_event,
    )
    return route.router.topics.events, value, encode_key(payload.token, person)


def _too_large(what: str) -> Refused:
    return too_large(
        f"maximum event size exceeded: {what}, and a record has at most {RECORD_MAX_BYTES}; leave "
        "it out or make it smaller"
    )


def event_properties(event: Event) -> bytes:
    """The properties as they are kept, of a size and depth that further steps may work on."""
    size = len(event.properties) + len(event.set) + len(event.set_once)
    if size > RECORD_MAX_BYTES:
        _large_object(event)
        raise _too_large(f"its properties have {size} bytes")
    properties = _object(event)
    if event.set is not ABSENT or event.set_once is not ABSENT:
        properties = splice_person_properties(properties, event.set, event.set_once)
    if too_deep(properties):
        raise bad_request(
            f"`properties`, `$set` and `$set_once` in them, nest deeper than {DEPTH_LIMIT} levels",
            "too_deep",
        )
    if too_many_keys(properties):
        raise bad_request(
            f"`properties`, `$set` and `$set_once` in them, have more than {MAX_KEYS} keys",
            "too_many_keys",
        )
    return properties


def _object(event: Event) -> bytes:
    """The properties as they came; none at all are an empty object."""
    properties = bytes(event.properties)
    if properties.startswith(b"{"):
        return properties
    if properties not in NOTHING:
        raise bad_request("`properties` is not an object", "bad_properties")
    return b"{}"


def _large_object(event: Event) -> bytes | Raw:
    """The same, without a copy."""
    is_object = memoryview(event.properties)[:1].tobytes() == b"{"
    return event.properties if is_object else _object(event)


def _head(event: Event, properties: bytes | Raw, peculiar: bool) -> PropertiesHead | None:
    """The head of the properties, parsed only if there is something in it that matters."""
    if not peculiar and (_given(event.distinct_id) or _given(event.dollar_distinct_id)):
        return None
    head = properties_head(properties)
    cookieless = head.cookieless_mode
    if cookieless is not ABSENT and cookieless not in (TRUE, FALSE):
        raise bad_request("invalid cookieless mode: `$cookieless_mode` must be true or false")
    return head


def event_name(event: Event, engage: bool = False) -> str:
    """The event's name; with `engage`, one that has none is `$identify`."""
    name = event.event
    if name:
        return name
    if name is not None:
        raise bad_request("event submitted with an empty event name", "missing_event_name")
    if engage:
        return "$identify"
    raise bad_request(
        "failed to hydrate events from request: an event has no name in `event`",
        "missing_event_name",
    )


def event_distinct_id(event: Event, head: PropertiesHead | None = None) -> str:
    """Whom it is of, as text; `head` is what the properties say of it, where that counts."""
    value = event.distinct_id
    if not _given(value):
        value = event.dollar_distinct_id
    if not _given(value) and head is not None:
        value = head.distinct_id
    text = text_of(value)
    if text is None:
        text = _json_text(value) if _given(value) else ""
    if not text or text.isspace():
        raise bad_request("event submitted without a distinct_id", "missing_distinct_id")
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _given(value: Raw) -> bool:
    return value != ABSENT and value != NULL


def _json_text(value: Raw) -> str:
    """What is not a string, as compact JSON with its keys in order."""
    if len(value) > ODD_DISTINCT_ID_BYTES:
        raise bad_request(
            f"`distinct_id` is no string, and longer than {ODD_DISTINCT_ID_BYTES} bytes"
        )
    if too_deep(bytes(value), ODD_DISTINCT_ID_DEPTH):
        raise bad_request(
            f"`distinct_id` is no string, and nests deeper than {ODD_DISTINCT_ID_DEPTH} levels"
        )
    try:
        return msgspec.json.encode(msgspec.json.decode(value), order="sorted").decode()
    except msgspec.DecodeError as error:
        raise bad_request(f"failed to parse `distinct_id`: {error}", "bad_json") from None
    except (RecursionError, OverflowError):
        raise bad_request("`distinct_id` is neither a string nor a sensible value") from None


def event_uuid(event: Event) -> str | None:
    """The uuid that the client gave it, in its usual form; None when it gave none."""
    if not event.uuid:
        return None
    uuid = normal_uuid(event.uuid)
    if uuid is None:
        what = "`uuid` is not a UUID"
        raise bad_request(f"{what}: {event.uuid[:64]!r}", "bad_uuid", for_log=what)
    # The nil UUID stands for "none"; kept, it would make its events each other's duplicates.
    return None if uuid == NIL_UUID else uuid


def _offset(value: int | float) -> int:
    """Whole milliseconds that fit 64 bits even as microseconds."""
    return max(-_INT64_MS, min(_INT64_MS, int(value)))
