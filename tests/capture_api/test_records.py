"""The rules of a request and of its events: shapes, tokens, distinct ids, uuids, properties."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from capture_api.events.record import (
    FLAG_COOKIELESS,
    FLAG_DISTINCT_ID_CUT,
    FLAG_HISTORICAL,
    FLAG_TIME_CLAMPED,
)
from capture_api.events.records import (
    INTERNAL_ADDRESS,
    ODD_DISTINCT_ID_BYTES,
    ODD_DISTINCT_ID_DEPTH,
    RECORD_MAX_BYTES,
    Record,
    Request,
    build_records,
)
from capture_api.events.refused import NAME_LENGTH, RAW_BYTES, RefusedEvent
from capture_api.events.uuids import MintSeed, mint_uuids, normal_uuid
from capture_api.protection.routing import Router, Topics
from capture_api.refusal import Refused
from capture_api.wire.payload import MAX_OBJECTS, parse_payload
from tests.records import read_value

NOW = 1_772_625_600_000_000
TOKEN = "phc_test"
RECEIPT = "019cb000-0000-7000-8000-000000000000"
REQUEST = Request(NOW, RECEIPT, "10.0.0.1", "agent", "", None, False)
ENGAGE = Request(NOW, RECEIPT, "10.0.0.1", "agent", "", None, True)


TOPICS = Topics("events", "events_historical", "events_overflow")


def build(body: Any, request: Request = REQUEST) -> list[dict[str, Any]]:
    """The values of the records of a body (text, bytes or an object)."""
    return [read_value(value) for _, value, _ in raw_records(body, request)]


def raw_records(
    body: Any, request: Request = REQUEST, left_out: list[RefusedEvent] | None = None
) -> list[Record]:
    """The records of a body."""
    if not isinstance(body, bytes):
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
    payload = parse_payload(body)
    route = Router(TOPICS, None).route(7, payload.historical)
    return build_records(payload, 7, request, route, [] if left_out is None else left_out)


def properties_of(body: str) -> str:
    """The bytes of the one record's properties, as text."""
    [(_, value, _)] = raw_records(body)
    return value.split(b"\n", 1)[1].decode()


def event(**fields: Any) -> dict[str, Any]:
    """A good event, changed."""
    return {"event": "e", "distinct_id": "d", "token": TOKEN, **fields}


def outcome(body: Any) -> int:
    """The status that the body earns: 200 means that its records can be read back."""
    try:
        build(body)
    except Refused as refused:
        return refused.status
    return 200


def refusal(body: Any, request: Request = REQUEST) -> Refused:
    """The refusal that the body meets."""
    with pytest.raises(Refused) as caught:
        build(body, request)
    return caught.value


@pytest.mark.parametrize(
    "body",
    [
        event(),
        [event()],
        {"api_key": TOKEN, "batch": [{"event": "e", "distinct_id": "d"}]},
        {"token": TOKEN, "batch": [{"event": "e", "distinct_id": "d"}]},
        {"event": "e", "$token": TOKEN, "$distinct_id": "d"},
        {"event": "e", "api_key": TOKEN, "properties": {"distinct_id": "d"}},
        {"event": "e", "properties": {"distinct_id": "d", "token": TOKEN}},
        [{"event": "e", "properties": {"distinct_id": "d", "token": TOKEN}}],
        event(distinct_id=None, token=f" {TOKEN} ", properties={"distinct_id": "d"}),
        {"api_key": TOKEN, "batch": [event(token="other")]},
    ],
)  # fmt: skip
def test_token_and_distinct_id_are_found_where_clients_put_them(body: Any) -> None:
    """At the top, under their aliases, or in the properties."""
    [(_, value, key)] = raw_records(body)
    assert key == b"phc_test:d"
    assert read_value(value)["distinct_id"] == "d"
    assert read_value(value)["project_id"] == 7


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("[]", 400, "request holds no event"),
        ({"api_key": TOKEN, "batch": []}, 400, "request holds no event"),
        ("{}", 401, "event submitted without an api_key"),
        ([{"event": "e", "distinct_id": "d"}], 401, "event submitted without an api_key"),
        ({"batch": [{"event": "e", "distinct_id": "d"}]}, 401, "without an api_key"),
        ([event(), event(token="phc_b")], 401, "inconsistent api_key values"),
        (event(token="", properties={"token": 5}), 401, "event submitted without an api_key"),
        ({"api_key": " ", "batch": [event()]}, 401, "API key is not valid: empty"),
        (event(token="p" * 65), 401, "API key is not valid: too_long"),
        (event(token="phc_é"), 401, "API key is not valid: not_ascii"),
        (event(token="phx_secret"), 401, "API key is not valid: personal_api_key"),
        (event(token="phc\0x"), 401, "API key is not valid: null_byte"),
        ({"token": TOKEN, "distinct_id": "d"}, 400, "failed to hydrate events from request"),
        (event(event=""), 400, "event submitted with an empty event name"),
        (event(event=5), 400, "`$.event`"),
        ({"api_key": TOKEN, "batch": [event(), event(uuid=5)]}, 400, "`$.batch[1].uuid`"),
        (event(distinct_id=""), 400, "event submitted without a distinct_id"),
        (event(distinct_id=None), 400, "event submitted without a distinct_id"),
        (event(distinct_id=" \t\n"), 400, "event submitted without a distinct_id"),
        (event(distinct_id=None, properties={"distinct_id": ""}), 400, "without a distinct_id"),
        (event(uuid="not-a-uuid"), 400, "`uuid` is not a UUID: 'not-a-uuid'"),
        (event(uuid="018f3b5c_0000_7000_8000_0123456789ab"), 400, "`uuid` is not a UUID"),
        (event(properties=[0]), 400, "`properties` is not an object"),
        (event(properties="{}"), 400, "`properties` is not an object"),
        (event(properties=1), 400, "`properties` is not an object"),
        (event(properties={"$cookieless_mode": 1}), 400, "invalid cookieless mode"),
        (event(properties={"$cookieless_mode": None}), 400, "invalid cookieless mode"),
        ({**event(), "$set": 1}, 400, "`$set` is not an object"),
        ({**event(), "$set_once": [[]]}, 400, "`$set_once` is not an object"),
        ([event(), event(distinct_id="")], 400, "event 1: event submitted without a distinct_id"),
        ("nonsense", 400, "failed to parse the request"),
        ('{"event":"e"', 400, "failed to parse the request"),
        ('{"event":"e"} x', 400, "failed to parse the request"),
        ("5", 400, "failed to hydrate events from request"),
        ('{"event":"e","distinct_id":1e999,"token":"t"}', 400, "out of range"),
        ('{"event":"e","distinct_id":"d","token":"t","properties":{"a":NaN}}', 400, "parse"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_words(body: Any, status: int, text: str) -> None:
    """Each rule has its status, and its text says what is wrong and where."""
    refused = refusal(body)
    assert (refused.status, text in refused.detail) == (status, True), refused.detail


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (1.5, "1.5"),
        (True, "true"),
        ([1, "a"], '[1,"a"]'),
        ({"a": {"b": None}}, '{"a":{"b":null}}'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        (" a ", " a "),
        ("a\0b", "a\ufffdb"),
        ("é", "é"),
        (12345678901234567890123, "12345678901234567890123"),
    ],
)
def test_distinct_id_becomes_text(value: Any, text: str) -> None:
    """Whatever JSON the client used, compactly; NUL becomes U+FFFD."""
    assert build(event(distinct_id=value))[0]["distinct_id"] == text


def test_long_distinct_id_is_cut_and_flagged() -> None:
    """The first 200 characters stay; exactly 200 are not flagged."""
    [long, exact] = build([event(distinct_id="é" * 201), event(distinct_id="é" * 200)])
    assert (long["distinct_id"], long["flags"]) == ("é" * 200, FLAG_DISTINCT_ID_CUT)
    assert (exact["distinct_id"], exact["flags"]) == ("é" * 200, 0)


@pytest.mark.parametrize(
    ("given_uuid", "stored"),
    [
        ("018F3B5C-0000-7000-8000-0123456789AB", "018f3b5c-0000-7000-8000-0123456789ab"),
        ("018f3b5c0000700080000123456789ab", "018f3b5c-0000-7000-8000-0123456789ab"),
        ("{018f3b5c-0000-7000-8000-0123456789ab}", "018f3b5c-0000-7000-8000-0123456789ab"),
        ("urn:uuid:018F3B5C-0000-7000-8000-0123456789AB", "018f3b5c-0000-7000-8000-0123456789ab"),
    ],
)  # fmt: skip
def test_uuid_is_normalised(given_uuid: str, stored: str) -> None:
    """One UUID has one spelling in the record."""
    assert build(event(uuid=given_uuid))[0]["uuid"] == stored


@pytest.mark.parametrize("absent", [None, "", "00000000-0000-0000-0000-000000000000"])
def test_absent_uuid_is_minted(absent: str | None) -> None:
    """Null, empty and nil stand for none: each event gets a version 7 of the time of receipt."""
    values = build([event(uuid=absent), event(uuid=absent), event()])
    uuids = {value["uuid"] for value in values}
    assert len(uuids) == 3
    for uuid in uuids:
        assert normal_uuid(uuid) == uuid
        assert int(uuid.replace("-", "")[:12], 16) == NOW // 1000
        assert uuid[14] == "7"
        assert uuid[19] in "89ab"


def test_request_sent_twice_by_a_gateway_mints_the_same_uuids() -> None:
    """On two servers, at two times, each event without a UUID gets that of its position."""
    nil, given = "00000000-0000-0000-0000-000000000000", "0192c3d4-e5f6-7718-893a-4b5c6d7e8f90"
    batch = [event(), event(uuid=given), event(uuid=nil), event(uuid=""), event()]
    seed = MintSeed(NOW - 5_000_000, b"one request")
    tries = [
        [value["uuid"] for value in build(batch, replace(REQUEST, mint_seed=seed, received_at=at))]
        for at in (NOW, NOW + 3_000_000)
    ]
    assert tries[0] == tries[1]
    assert len(set(tries[0])) == 5
    assert tries[0][1] == given
    assert {int(uuid.replace("-", "")[:12], 16) for uuid in tries[0] if uuid != given} == {
        seed.at_us // 1000
    }


def test_minted_uuids_differ() -> None:
    """Many minted at once are all different and well formed."""
    uuids = mint_uuids(NOW, 10_000)
    assert len(set(uuids)) == 10_000
    assert all(normal_uuid(uuid) == uuid for uuid in uuids)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ('"properties":{ "b" : 1.50, "a":"\\u0041" }', '{ "b" : 1.50, "a":"\\u0041" }'),
        ('"properties":{"a":\n1,\r\n"b":2}', '{"a": 1,  "b":2}'),
        ('"properties":null', "{}"),
        ('"properties":[]', "{}"),
        ('"x":1', "{}"),
        ('"properties":{"n":123456789012345678901234567890,"f":1e300}',
         '{"n":123456789012345678901234567890,"f":1e300}'),
        ('"properties":{"a":1,"a":2}', '{"a":1,"a":2}'),
        ('"properties":{"a":"\\ud83d"}', '{"a":"\\ufffd"}'),
        ('"properties":{"a":"\\ud83d\\ude00 \\u0000"}', '{"a":"\\ud83d\\ude00 \\u0000"}'),
        # $set and $set_once beside the properties
        ('"$set":{"p": 1}', '{"$set":{"p": 1}}'),
        ('"properties":{ },"$set":{"p":1}', '{"$set":{"p":1}}'),
        ('"properties":{"a": 1 },"$set":{"p":1},"$set_once":{"q":2}',
         '{"a": 1 ,"$set":{"p":1},"$set_once":{"q":2}}'),
        ('"properties":{"a":1},"$set":null', '{"a":1}'),
        ('"properties":{"a":1},"$set":[],"$set_once":[]', '{"a":1}'),
        ('"properties":{"$set":{"p":1.0,"r":3}},"$set":{"p":2}', '{"$set":{"p":2,"r":3}}'),
        ('"properties":{"\\u0024set":{"p":1.0}},"$set":{"q":2}', '{"$set":{"p":1.0,"q":2}}'),
        ('"properties":{"$set":5},"$set":{"q":2}', '{"$set":{"q":2}}'),
    ],
)  # fmt: skip
def test_properties_keep_the_clients_bytes(sent: str, stored: str) -> None:
    """Only what the rules name changes; everything else is the client's own spelling."""
    body = f'{{"event":"e","distinct_id":"d","token":"t",{sent}}}'
    assert properties_of(body) == stored


def test_lone_surrogates_do_not_break_a_name() -> None:
    """Half an emoji in a name becomes U+FFFD."""
    body = b'{"event":"a\\ud83d","distinct_id":"\\ude00","token":"t"}'
    [value] = build(body)
    assert (value["event"], value["distinct_id"]) == ("a\ufffd", "\ufffd")


@pytest.mark.parametrize("place", ["properties", "distinct_id", "x", "$set", "sent_at"])
@pytest.mark.parametrize("levels", [200, 2_000, 200_000])
def test_deep_nesting_is_refused_or_passed_over(place: str, levels: int) -> None:
    """Depth never breaks the server, wherever it stands."""
    value = '{"a":' * levels + "1" + "}" * levels
    body = f'{{"event":"e","distinct_id":"d","{place}":{value}}}'
    status = outcome(f'{{"token":"t","batch":[{body}]}}')
    assert status == 400 or (status == 200 and place in ("x", "distinct_id", "sent_at"))


def test_flags_and_common_fields() -> None:
    """A historical batch is flagged; what the request says about itself is in each record."""
    body = {
        "api_key": TOKEN,
        "historical_migration": True,
        "sent_at": "2026-03-04T13:00:00Z",
        "batch": [
            event(timestamp="2026-03-04T13:00:00Z"),
            event(timestamp="2027-01-01T00:00:00Z"),
            event(timestamp=1772625600),
            event(timestamp="2026-03-04T12:00:00Z", properties={"$ignore_sent_at": True}),
            event(offset=2500),
            event(timestamp="soon" * 100_000),
        ],
    }
    skewed, clamped, number, ignoring, offset, long = build(body)
    assert skewed["flags"] == FLAG_HISTORICAL
    assert skewed["timestamp"] == NOW
    assert skewed["client_timestamp"] == "2026-03-04T13:00:00Z"
    assert skewed["sent_at"] == NOW + 3_600_000_000
    assert (skewed["ip"], skewed["user_agent"], skewed["request_id"]) == (
        "10.0.0.1", "agent", RECEIPT,
    )  # fmt: skip
    assert clamped["flags"] == FLAG_HISTORICAL | FLAG_TIME_CLAMPED
    assert clamped["timestamp"] == NOW
    assert number["client_timestamp"] == "1772625600"
    assert number["timestamp"] == NOW - 3_600_000_000
    assert ignoring["timestamp"] == NOW
    assert (offset["timestamp"], offset["offset_ms"]) == (NOW - 2_500_000, 2500)
    assert (long["timestamp"], long["client_timestamp"]) == (NOW, "soon" * 50)


def test_sent_at_of_the_query_stands_in_for_that_of_the_batch() -> None:
    """A batch's own goes first; an unreadable one does not count."""
    query = Request(NOW, RECEIPT, "", "", "", NOW + 3_600_000_000, False)
    assert build([event()], query)[0]["sent_at"] == NOW + 3_600_000_000
    own = {"token": TOKEN, "sent_at": "2026-03-04T12:00:00Z", "batch": [event()]}
    assert build(own, query)[0]["sent_at"] == NOW
    bad = {"token": TOKEN, "sent_at": "soon", "batch": [event()]}
    assert build(bad, query)[0]["sent_at"] == NOW + 3_600_000_000


def test_engage_makes_identify() -> None:
    """On /engage an object without a name identifies; its `$set` becomes a property."""
    body = {"$token": TOKEN, "$distinct_id": "d", "$set": {"a": 1}}
    [value] = build(body, ENGAGE)
    assert (value["event"], value["properties"]) == ("$identify", {"$set": {"a": 1}})


def test_performance_events_are_dropped() -> None:
    """They vanish without a word, alone or among others, and need no token of their own."""
    performance = event(event="$performance_event", distinct_id="")
    assert build([performance]) == []
    assert build({"event": "$performance_event"}) == []
    others = [{**performance, "token": "other"}, event()]
    assert [value["event"] for value in build(others)] == ["e"]


def test_too_many_events_are_refused() -> None:
    """A request has an upper number of events, told with 413 so that clients split it."""
    body = b'{"api_key":"t","batch":[' + b",".join([b"{}"] * 50_001) + b"]}"
    assert refusal(body).status == 413


def test_too_many_objects_are_refused_unparsed() -> None:
    """A body of millions of empty events would fill the memory before they could be counted."""
    body = b"[" + b"{}," * MAX_OBJECTS + b"{}]"
    assert refusal(body).status == 413


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
fields = st.sampled_from(
    ["event", "distinct_id", "$distinct_id", "uuid", "properties", "timestamp", "offset", "$set",
     "$set_once", "token", "api_key", "batch", "sent_at", "historical_migration"]
)  # fmt: skip


@given(st.dictionaries(fields, json_values, max_size=6))
def test_any_shape_is_refused_or_makes_readable_records(fields: dict[str, Any]) -> None:
    """Whatever the fields hold, there is a refusal with 4xx or records that can be read back."""
    for body in (fields, [event(**fields)], {"api_key": TOKEN, "batch": [event(**fields)]}):
        assert outcome(body) in (200, 400, 401, 413)


@pytest.mark.parametrize("field", ["properties", "$set", "$set_once"])
def test_oversized_properties_are_left_out_before_any_work(
    monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Their length alone decides, however many brackets they hold."""

    def no_work(_: bytes) -> bool:
        raise AssertionError("nobody looks into properties that are too large")

    body = json.dumps(event(**{field: {"a": [[]] * (RECORD_MAX_BYTES // 2)}}))
    monkeypatch.setattr("capture_api.events.records.too_deep", no_work)
    left_out: list[RefusedEvent] = []
    [_] = raw_records(body, left_out=left_out)
    assert [(event.index, event.code) for event in left_out] == [(0, "too_large")]


def test_evidence_of_an_event_that_is_too_large() -> None:
    """The others are kept; it is told by its place, and a small record says what it was."""
    uuid = "018f3b5c-0000-7000-8000-0123456789ab"
    name = "é" * (NAME_LENGTH + 1)
    properties = {"big": "x" * RECORD_MAX_BYTES, "$cookieless_mode": True}
    body = {
        "api_key": TOKEN,
        "historical_migration": True,
        "batch": [
            event(),
            event(event="$performance_event"),
            event(event=name, distinct_id="i" * 300, uuid=uuid, properties=properties),
            event(distinct_id="last"),
        ],
    }
    left_out: list[RefusedEvent] = []
    first, evidence, last = raw_records(body, left_out=left_out)
    [told] = left_out
    assert (told.index, told.uuid, told.code) == (2, uuid, "too_large")
    assert str(RECORD_MAX_BYTES) in told.detail
    assert (first[0], last[0], last[2]) == (TOPICS.historical, TOPICS.historical, b"phc_test:last")
    topic, value, key = evidence
    assert (topic, key) == (TOPICS.events, b"phc_test:10.0.0.1")
    raw = json.dumps(body["batch"][2]).encode()
    assert json.loads(value) == {
        "v": 1,
        "refused": "too_large",
        "uuid": uuid,
        "project_id": 7,
        "event": name[:NAME_LENGTH],
        "distinct_id": "i" * 200,
        "received_at": NOW,
        "request_id": RECEIPT,
        "bytes": len(raw),
        "sha256": sha256(raw).hexdigest(),
        "raw": b64encode(raw[:RAW_BYTES]).decode(),
    }


def test_event_that_is_too_large_by_other_fields() -> None:
    """Whatever fills it, the event is left out, and measured as it came: alone, too."""
    for fields in ({"event": "e" * RECORD_MAX_BYTES}, {"$set": {"a": "e" * RECORD_MAX_BYTES}}):
        large = event(**fields, properties=None, text="half \ud83d")
        for body in (large, [large], {"token": TOKEN, "batch": [large]}):
            left_out: list[RefusedEvent] = []
            [(_, value, _)] = raw_records(body, left_out=left_out)
            assert (len(left_out), json.loads(value)["bytes"]) == (1, len(json.dumps(large)))


@pytest.mark.parametrize(
    ("properties", "set_", "status"),
    [
        (1, 126, 200),
        (1, 127, 200),
        (1, 128, 400),
        (127, 128, 400),
        (128, 127, 200),
        (129, 1, 400),
    ],
)
def test_depth_is_that_of_what_is_written(properties: int, set_: int, status: int) -> None:
    """`$set` beside the properties counts as what it becomes: a level further down."""
    found = {"x": levels(properties - 1)} if properties > 1 else {}
    assert outcome(event(properties=found, **{"$set": levels(set_)})) == status


@pytest.mark.parametrize(("own", "set_", "status"), [(5000, 4999, 200), (5000, 5000, 400)])
def test_keys_are_those_of_what_is_written(own: int, set_: int, status: int) -> None:
    """Those of `$set` and it itself count together with the others."""
    keys = {str(number): 0 for number in range(own)}
    body = event(properties=keys, **{"$set": {str(number): 0 for number in range(set_)}})
    assert outcome(body) == status


def levels(count: int) -> dict[str, Any]:
    """An object of so many levels."""
    return {"a": levels(count - 1)} if count > 1 else {}


@pytest.mark.parametrize(
    "fields",
    [
        {"distinct_id": None},
        {"event": ""},
        {"uuid": "x"},
        {"properties": ["x" * RECORD_MAX_BYTES]},
        {"properties": {"$cookieless_mode": 1, "big": "x" * RECORD_MAX_BYTES}},
    ],
)
def test_size_does_not_excuse_an_event_that_breaks_another_rule(fields: dict[str, Any]) -> None:
    """Then the request is refused as a whole, and the place of the event is named."""
    large = event(**{"properties": {"big": "x" * RECORD_MAX_BYTES}, **fields})
    refused = refusal([event(), large])
    assert (refused.status, refused.detail[:8]) == (400, "event 1:")


@pytest.mark.parametrize(
    ("properties", "key", "flags", "ip"),
    [
        ({}, b"phc_test:d", 0, "10.0.0.1"),
        ({"$cookieless_mode": False}, b"phc_test:d", 0, "10.0.0.1"),
        ({"$cookieless_mode": True}, b"phc_test:10.0.0.1", FLAG_COOKIELESS, "10.0.0.1"),
        ({"capture_internal": None}, b"phc_test:d", 0, INTERNAL_ADDRESS),
        ({"capture_internal": True, "$cookieless_mode": True}, b"phc_test:127.0.0.1",
         FLAG_COOKIELESS, INTERNAL_ADDRESS),
        ({"x": "capture_internal", "y": {"$cookieless_mode": 5}}, b"phc_test:d", 0, "10.0.0.1"),
    ],
)  # fmt: skip
def test_peculiar_properties(properties: Any, key: bytes, flags: int, ip: str) -> None:
    """Visitors without cookies are kept apart by address; a service's own address is not kept."""
    [(_, value, found)] = raw_records(event(properties=properties))
    head = read_value(value)
    assert (found, head["flags"], head["ip"]) == (key, flags, ip)
    assert head["distinct_id"] == "d"


UUID_OF_NOON = f"{(NOW - 5_000_000) // 1000:012x}"  # made 5 s before NOW
MADE_5_S_AGO = f"{UUID_OF_NOON[:8]}-{UUID_OF_NOON[8:]}-7000-8000-0123456789ab"


@pytest.mark.parametrize(
    ("fields", "request_fields", "age_ms"),
    [
        # A first attempt: the offset is the age, up to what sending took.
        ({"offset": 4990, "uuid": MADE_5_S_AGO}, {"sent_at": NOW}, 4990),
        # The same event sent again: its UUID knows better.
        ({"offset": 990, "uuid": MADE_5_S_AGO}, {"sent_at": NOW}, 5000),
        ({"offset": 990, "uuid": MADE_5_S_AGO}, {"sent_at": NOW + 30_000_000}, 35000),
        ({"offset": 990, "uuid": MADE_5_S_AGO}, {}, 990),
        ({"offset": 990}, {"sent_at": NOW}, 990),
        # A clock that cannot be says nothing, and loses nothing.
        ({"offset": 990, "uuid": MADE_5_S_AGO}, {"sent_at": NOW + 10**15}, 990),
        ({"offset": 990, "uuid": MADE_5_S_AGO}, {"sent_at": NOW - 10**15}, 990),
        ({"offset": 990, "uuid": MADE_5_S_AGO.replace("-7000-", "-4000-")}, {"sent_at": NOW}, 990),
        ({"offset": 990, "uuid": MADE_5_S_AGO, "properties": {"$ignore_sent_at": True}},
         {"sent_at": NOW + 30_000_000}, 990),
        ({"offset": 990, "uuid": MADE_5_S_AGO, "timestamp": "2020-01-01T00:00:00Z"},
         {"sent_at": NOW}, 5000),
    ],
)  # fmt: skip
def test_stale_offset(fields: Any, request_fields: Any, age_ms: int) -> None:
    """An event that is sent again keeps its time, though its offset is of the first attempt."""
    [value] = build(event(**fields), replace(REQUEST, **request_fields))
    assert value["timestamp"] == NOW - age_ms * 1000
    assert value["offset_ms"] == fields["offset"]


@pytest.mark.parametrize("where", ["distinct_id", "$distinct_id", "properties"])
def test_large_odd_distinct_id_is_refused_unread(where: str) -> None:
    """Arrays and objects stand for a distinct_id only while they are short; 400 otherwise."""
    value = [1] * (ODD_DISTINCT_ID_BYTES // 2)
    fields = {"properties": {"distinct_id": value}} if where == "properties" else {where: value}
    refused = refusal({"event": "e", "token": TOKEN, **fields})
    assert (refused.status, "`distinct_id` is no string" in refused.detail) == (400, True)


@pytest.mark.parametrize(
    ("depth", "status"), [(ODD_DISTINCT_ID_DEPTH, 200), (ODD_DISTINCT_ID_DEPTH + 1, 400)]
)
def test_deep_odd_distinct_id_is_refused(depth: int, status: int) -> None:
    """It takes time for each level to write one anew, and a request may have 50,000 of them."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    assert outcome(event(distinct_id=value)) == status


def test_values_of_any_kind_stay_raw_until_they_are_needed() -> None:
    """What a client may fill with anything becomes no objects while the body is parsed."""
    text = json.dumps(event(distinct_id=[{}], sent_at=[{}]))
    [parsed] = parse_payload(text.encode()).events
    assert isinstance(parsed.distinct_id, msgspec.Raw)
