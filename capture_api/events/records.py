"""Events become records: every rule about a single event is applied here, or the request refused.

Nothing is produced here. A request is one unit: the first event that breaks a rule refuses the
whole of it, before any record has left.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw

from capture_api.events.person_properties import splice_person_properties
from capture_api.events.record import (
    DISTINCT_ID_LENGTH,
    FLAG_DISTINCT_ID_CUT,
    FLAG_HISTORICAL,
    FLAG_TIME_CLAMPED,
    RECORD_VERSION,
    RecordHead,
    encode_key,
    encode_value,
)
from capture_api.events.timestamps import clock_skew, event_time
from capture_api.events.uuids import NIL_UUID, mint_uuid, mint_uuids, normal_uuid
from capture_api.protection.routing import Route
from capture_api.refusal import Refused, bad_request, too_large
from capture_api.wire.depth import DEPTH_LIMIT, too_deep
from capture_api.wire.payload import (
    ABSENT,
    FALSE,
    NULL,
    TRUE,
    Event,
    Payload,
    PropertiesHead,
    properties_head,
    text_of,
)

RECORD_MAX_BYTES = 999_000
"""Key and value of one record: Kafka's usual limit of 1,000,000 less its own framing."""

Record = tuple[str, bytes, bytes | None]
"""A topic, a value and a key, in the order that producing takes them."""

ODD_DISTINCT_ID_BYTES = 4096
"""JSON of a distinct_id that is not a string; only its first characters are kept anyway."""

_PERFORMANCE_EVENT = "$performance_event"
_INT64_MS = (2**63 - 1) // 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What the request itself says about every event in it. Times in µs."""

    received_at: int
    request_id: str
    ip: str
    user_agent: str
    sdk: str
    sent_at: int | None  # of the query; a batch's own goes first
    engage: bool  # events without a name are `$identify`


def build_records(
    payload: Payload, project_id: int, request: Request, route: Route
) -> list[Record]:
    """The records of the request, in the order of its events; empty if none are to be kept.

    `route` says where each goes, or that it is dropped.
    """
    events = [event for event in payload.events if event.event != _PERFORMANCE_EVENT]
    sent_at = payload.sent_at if payload.sent_at is not None else request.sent_at
    skew = clock_skew(sent_at, request.received_at)
    common_flags = FLAG_HISTORICAL if payload.historical else 0
    rules, hot_keys = route.rules, route.hot_keys
    received_at, token = request.received_at, payload.token
    without_uuid = sum(not event.uuid for event in events)
    minted = mint_uuids(received_at, without_uuid) if without_uuid else []
    records: list[Record] = []
    for index, event in enumerate(events):
        try:
            properties = _properties(event)
            head = _head(event, properties, payload.peculiar)
            flags = common_flags
            distinct_id = _distinct_id(event, head)
            if len(distinct_id) > DISTINCT_ID_LENGTH:
                distinct_id = distinct_id[:DISTINCT_ID_LENGTH]
                flags |= FLAG_DISTINCT_ID_CUT
            if event.set is not ABSENT or event.set_once is not ABSENT:
                properties = splice_person_properties(properties, event.set, event.set_once)
            text = event.timestamp
            if text is not None and not isinstance(text, str):
                text = msgspec.json.encode(text).decode()
            offset = None if event.offset is None else _offset(event.offset)
            timestamp, clamped = event_time(
                text=text,
                offset_ms=offset,
                skew=0 if head is not None and head.ignore_sent_at == TRUE else skew,
                received_at=received_at,
            )
            if clamped:
                flags |= FLAG_TIME_CLAMPED
            key = encode_key(token, distinct_id)
            name = _name(event, request.engage)
            topic: str = route.topic
            record_key: bytes | None = key
            if rules:
                place = route.place(key, name, distinct_id)
                if place.topic is None:
                    continue
                topic, record_key = place.topic, place.key
            elif hot_keys is not None and hot_keys.is_hot(key):
                topic, record_key = route.hot(key)
            record = (
                topic,
                encode_value(
                    RecordHead(
                        RECORD_VERSION,
                        _uuid(event) or (minted.pop() if minted else mint_uuid(received_at)),
                        project_id,
                        name,
                        distinct_id,
                        timestamp,
                        text,
                        offset,
                        sent_at,
                        received_at,
                        request.ip,
                        request.user_agent,
                        request.sdk,
                        request.request_id,
                        flags,
                    ),
                    properties,
                ),
                record_key,
            )
        except Refused as refused:
            if len(events) > 1:
                detail = f"event {index}: {refused.detail}"
                raise Refused(refused.status, refused.code, detail) from None
            raise
        size = len(key) + len(record[1])
        if size > RECORD_MAX_BYTES:
            raise too_large(
                f"maximum event size exceeded: event {index} makes a record of {size} bytes, at "
                f"most {RECORD_MAX_BYTES}; leave it out or make it smaller"
            )
        records.append(record)
    return records


def _properties(event: Event) -> bytes:
    """The properties, of a size and depth that further steps may work on."""
    size = len(event.properties) + len(event.set) + len(event.set_once)
    if size > RECORD_MAX_BYTES:
        raise too_large(
            f"maximum event size exceeded: its properties have {size} bytes, and a record at most "
            f"{RECORD_MAX_BYTES}; leave it out or make it smaller"
        )
    properties = bytes(event.properties)
    if not properties.startswith(b"{"):
        if properties == b"null":
            return b"{}"
        raise bad_request("`properties` is not an object", "bad_properties")
    if too_deep(properties):
        raise bad_request(f"`properties` nest deeper than {DEPTH_LIMIT} levels", "too_deep")
    return properties


def _head(event: Event, properties: bytes, peculiar: bool) -> PropertiesHead | None:
    """The head of the properties, parsed only if there is something in it that matters."""
    if not peculiar and (_given(event.distinct_id) or _given(event.dollar_distinct_id)):
        return None
    head = properties_head(properties)
    if _given(head.cookieless_mode) and head.cookieless_mode not in (TRUE, FALSE):
        raise bad_request("invalid cookieless mode: `$cookieless_mode` must be true or false")
    return head


def _name(event: Event, engage: bool) -> str:
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


def _distinct_id(event: Event, head: PropertiesHead | None) -> str:
    value = event.distinct_id
    if not _given(value):
        value = event.dollar_distinct_id
    if not _given(value) and head is not None:
        value = head.distinct_id
    text = text_of(value)
    if text is None:
        text = _json_text(value) if _given(value) else ""
    if not text:
        raise bad_request("event submitted without a distinct_id", "missing_distinct_id")
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _given(value: Raw) -> bool:
    return value != ABSENT and value != NULL


def _json_text(value: Raw) -> str:
    """What is not a string, as compact JSON."""
    if len(value) > ODD_DISTINCT_ID_BYTES:
        raise bad_request(
            f"`distinct_id` is no string, and longer than {ODD_DISTINCT_ID_BYTES} bytes"
        )
    try:
        return msgspec.json.encode(msgspec.json.decode(value)).decode()
    except msgspec.DecodeError as error:
        raise bad_request(f"failed to parse `distinct_id`: {error}", "bad_json") from None
    except (RecursionError, OverflowError):
        raise bad_request("`distinct_id` is neither a string nor a sensible value") from None


def _uuid(event: Event) -> str | None:
    if not event.uuid:
        return None
    uuid = normal_uuid(event.uuid)
    if uuid is None:
        raise bad_request(f"`uuid` is not a UUID: {event.uuid[:64]!r}", "bad_uuid")
    # The nil UUID stands for "none"; kept, it would make its events each other's duplicates.
    return None if uuid == NIL_UUID else uuid


def _offset(value: int | float) -> int:
    """Whole milliseconds that fit 64 bits even as microseconds."""
    return max(-_INT64_MS, min(_INT64_MS, int(value)))
