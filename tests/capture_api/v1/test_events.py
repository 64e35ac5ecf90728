"""Protocol v1, event by event: what each comes to, and what of it stands in Kafka."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from capture_api.events.record import (
    FLAG_COOKIELESS,
    FLAG_HISTORICAL,
    FLAG_PERSONLESS,
    FLAG_TIME_CLAMPED,
)
from capture_api.v1.answers import DETAILS
from capture_api.v1.events import ILLEGAL_DISTINCT_IDS


def deep(levels: int) -> dict[str, Any]:
    """An object of so many levels."""
    found: dict[str, Any] = {}
    for _ in range(levels - 1):
        found = {"a": found}
    return found


DROPS: list[tuple[dict[str, Any], str]] = [
    ({"event": "$performance_event"}, "dropped_performance_event"),
    ({"event": "$performance_event", "distinct_id": ""}, "dropped_performance_event"),
    ({"event": ""}, "missing_event_name"),
    ({"event": "x" * 201}, "event_name_too_long"),
    ({"event": "é" * 101}, "event_name_too_long"),
    ({"distinct_id": ""}, "missing_distinct_id"),
    ({"distinct_id": " \t "}, "missing_distinct_id"),
    ({"distinct_id": "x" * 201}, "distinct_id_too_large"),
    ({"distinct_id": "é" * 101}, "distinct_id_too_large"),
    ({"event": "", "distinct_id": ""}, "missing_event_name"),
    ({"timestamp": ""}, "invalid_event_timestamp"),
    ({"timestamp": "yesterday"}, "invalid_event_timestamp"),
    ({"timestamp": "2026-01-02"}, "invalid_event_timestamp"),
    ({"timestamp": "2026-01-02T03:04:05"}, "invalid_event_timestamp"),
    ({"timestamp": "2026-02-30T03:04:05Z"}, "invalid_event_timestamp"),
    ({"timestamp": "2026-01-02T25:04:05Z"}, "invalid_event_timestamp"),
    ({"timestamp": "2026-01-02T03:04:05+24:00"}, "invalid_event_timestamp"),
    ({"timestamp": "1767323045"}, "invalid_event_timestamp"),
    ({"timestamp": "x", "properties": []}, "invalid_event_timestamp"),
    ({"properties": []}, "malformed_event_properties"),
    ({"properties": "{}"}, "malformed_event_properties"),
    ({"properties": 1}, "malformed_event_properties"),
    ({"properties": [], "options": 1}, "malformed_event_properties"),
    ({"properties": deep(129)}, "malformed_event_properties"),
    ({"properties": {"a": [{"n": 10**400}]}}, "malformed_event_properties"),
    ({"options": []}, "invalid_options"),
    ({"options": "x"}, "invalid_options"),
    ({"options": {"cookieless_mode": "yes"}}, "invalid_options"),
    ({"options": {"cookieless_mode": {}}}, "invalid_options"),
    ({"options": {"disable_skew_correction": "2"}}, "invalid_options"),
    ({"options": {"process_person_profile": []}}, "invalid_options"),
    ({"options": {"product_tour_id": True}}, "invalid_options"),
    ({"options": {"product_tour_id": 1.5}}, "invalid_options"),
    ({"options": {"product_tour_id": 2**64}}, "invalid_options"),
    ({"properties": {"x": "y" * 999_000}}, "event_too_big"),
    ({"session_id": "y" * 999_000}, "event_too_big"),
]


@pytest.mark.parametrize(("fields", "details"), DROPS)
def test_a_bad_event_is_dropped_and_the_rest_goes_on(
    capture: Any, v1: Any, event: Any, fields: dict[str, Any], details: str
) -> None:
    """With the details of the first rule it breaks; its neighbours are kept."""
    before, bad, after = event(), event(**fields), event()
    response = v1(before, bad, after)
    assert response.status_code == 200, response.text
    assert list(response.json()["results"].items()) == [
        (before["uuid"], {"result": "ok"}),
        (bad["uuid"], {"result": "drop", "details": details}),
        (after["uuid"], {"result": "ok"}),
    ]
    assert DETAILS[details][0] == "drop"
    records = capture.records_of(response)
    kept = {record.value["uuid"] for record in records if "refused" not in record.value}
    assert kept == {before["uuid"], after["uuid"]}
    evidence = [record.value["uuid"] for record in records if "refused" in record.value]
    assert evidence == ([bad["uuid"]] if details == "event_too_big" else [])


def test_a_batch_of_bad_events_is_answered_200(capture: Any, v1: Any, event: Any) -> None:
    """Nothing is kept, and the client is told of each."""
    events = [event(event=""), event(distinct_id="")]
    response = v1(*events)
    assert response.status_code == 200
    assert [found["result"] for found in response.json()["results"].values()] == ["drop", "drop"]
    assert "Retry-After" not in response.headers
    assert capture.records_of(response) == []


KEPT: list[dict[str, Any]] = [
    {"event": "x" * 200},
    {"distinct_id": "x" * 200},
    {"distinct_id": "é" * 100},
    {"timestamp": "2026-01-02t03:04:05.5z"},
    {"timestamp": "2026-01-02 03:04:05.123456789-05:30"},
    {"timestamp": "2016-12-31T23:59:60Z"},
    {"timestamp": "0000-02-29T00:00:00Z"},
    {"timestamp": "9999-12-31T23:59:59-23:59"},
    {"properties": None},
    {"properties": {}},
    {"properties": deep(128)},
    {"unknown": 10**400},
    {"properties": {"\ud83d": "\udc00 a lone surrogate, \ud83d\ude00 a pair"}},
    {"options": None},
    {"options": {"unknown": [1]}},
    {"options": {"cookieless_mode": None, "product_tour_id": None}},
    {"session_id": None, "window_id": None, "unknown": {"x": 1}},
    {"event": "$exception"},
    {"event": "$$heatmap"},
    {"event": "$ai_generation"},
]


@pytest.mark.parametrize("fields", KEPT)
def test_an_event_within_the_rules_is_kept(
    capture: Any, v1: Any, event: Any, fields: dict[str, Any]
) -> None:
    """At each limit, and whatever it is about."""
    sent = event(**fields)
    response = v1(sent)
    assert response.json().get("results") == {sent["uuid"]: {"result": "ok"}}, response.text
    assert [record.value["uuid"] for record in capture.records_of(response)] == [sent["uuid"]]


@pytest.mark.parametrize("spelling", [str, str.upper])
def test_distinct_ids_of_nobody_are_kept_with_a_warning(
    capture: Any, v1: Any, event: Any, spelling: Any
) -> None:
    """All twenty, in any case; the record says that no person is to be made of them."""
    events = [event(distinct_id=spelling(name)) for name in sorted(ILLEGAL_DISTINCT_IDS)]
    response = v1(*events)
    assert len(events) == 20
    warning = {"result": "warning", "details": "person_processing_disabled"}
    assert response.json()["results"] == {sent["uuid"]: warning for sent in events}
    records = capture.records_of(response)
    assert len(records) == 20
    assert {record.value["flags"] for record in records} == {FLAG_PERSONLESS}


def test_a_record_says_all_that_is_known(capture: Any, v1: Any, event: Any) -> None:
    """Head, key and header as in v0; the properties with what the protocol keeps beside them."""
    sent = event(
        distinct_id="  ada\0 ",
        timestamp="2026-01-02T03:04:05.678Z",
        session_id="s-1",
        window_id="w-1",
        options={"process_person_profile": "FALSE", "product_tour_id": 42},
        properties={"total": 12.5, "$lib": "mine", "text": "é\u2028", "$window_id": 5},
    )
    response = v1(sent)
    (record,) = capture.records_of(response)
    assert record.key == f"{capture.token}:ada\ufffd"
    assert record.headers == [("tidemark-record", b"2")]
    value = record.value
    assert record.raw.count(b'"$lib"') == record.raw.count(b'"$window_id"') == 1
    assert value["uuid"] == sent["uuid"]
    assert value["project_id"] == capture.project.project_id
    assert value["event"] == "order placed"
    assert value["distinct_id"] == "ada\ufffd"
    assert value["client_timestamp"] == sent["timestamp"]
    assert value["ip"] == "127.0.0.1"
    assert value["sdk"] == value["user_agent"] == "posthog-rs/1.2.3"
    assert value["offset_ms"] is None
    assert value["flags"] == 0
    assert abs(value["sent_at"] - value["received_at"]) < 60_000_000
    assert value["properties"] == {
        "total": 12.5,
        "text": "é\u2028",
        "$session_id": "s-1",
        "$window_id": "w-1",
        "$product_tour_id": "42",
        "$process_person_profile": False,
        "$lib": "posthog-rs",
        "$lib_version": "1.2.3",
    }


PROPERTIES: list[tuple[bytes, bytes]] = [
    (b"{}", b'{"$lib":"a/b","$lib_version":"1"}'),
    (b"{ }", b'{ "$lib":"a/b","$lib_version":"1"}'),
    (b"{\n\t}", b'{ \t"$lib":"a/b","$lib_version":"1"}'),
    (b'{"n":1.0e2}', b'{"n":1.0e2,"$lib":"a/b","$lib_version":"1"}'),
    (b'{ "n" : 1 }', b'{ "n" : 1 ,"$lib":"a/b","$lib_version":"1"}'),
    (b'{"a":{}}', b'{"a":{},"$lib":"a/b","$lib_version":"1"}'),
    (b'{"$lib":"c"}', b'{"$lib":"a/b","$lib_version":"1"}'),
    (b'{"$lib_version": 2, "n":1.0e2}', b'{"n":1.0e2,"$lib":"a/b","$lib_version":"1"}'),
    (b'{"n": 1, "\\u0024l\\u0069b":"c"}', b'{"n":1,"$lib":"a/b","$lib_version":"1"}'),
    (b'{"n": {"$lib": 1} }', b'{"n": {"$lib": 1} ,"$lib":"a/b","$lib_version":"1"}'),
]


@pytest.mark.parametrize(("sent", "kept"), PROPERTIES)
def test_properties_keep_their_bytes(
    capture: Any, v1: Any, event: Any, sent: bytes, kept: bytes
) -> None:
    """What is injected stands behind them, once; the library's name may have slashes."""
    written = json.dumps({"created_at": "2026-01-02T03:04:05Z", "batch": [event(properties=0)]})
    content = written.encode().replace(b'"properties": 0', b'"properties": ' + sent)
    response = v1(content=content, headers={"PostHog-Sdk-Info": "a/b / 1"})
    (record,) = capture.records_of(response)
    assert record.raw.endswith(b"]\n" + kept)


@pytest.mark.parametrize("info", ["nonsense", "/1", "x/", "x/" + "1" * 199, ""])
def test_an_unusable_sdk_info_injects_nothing(capture: Any, v1: Any, event: Any, info: str) -> None:
    """The client's own `$lib` stays."""
    sent = event(properties={"$lib": "mine"})
    (record,) = capture.records_of(v1(sent, headers={"PostHog-Sdk-Info": info}))
    assert record.value["properties"] == {"$lib": "mine"}
    assert record.value["sdk"] == ""


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"cookieless_mode": True}, {"$cookieless_mode": True}),
    ({"cookieless_mode": " True "}, {"$cookieless_mode": True}),
    ({"cookieless_mode": "1"}, {"$cookieless_mode": True}),
    ({"cookieless_mode": 0.5}, {"$cookieless_mode": True}),
    ({"cookieless_mode": 0}, {"$cookieless_mode": False}),
    ({"cookieless_mode": "FALSE"}, {"$cookieless_mode": False}),
    ({"disable_skew_correction": 1}, {"$ignore_sent_at": True}),
    ({"process_person_profile": "0"}, {"$process_person_profile": False}),
    ({"product_tour_id": "tour"}, {"$product_tour_id": "tour"}),
    ({"product_tour_id": -7}, {"$product_tour_id": "-7"}),
    ({"product_tour_id": 2**64 - 1}, {"$product_tour_id": str(2**64 - 1)}),
    ({"product_tour_id": None}, {}),
]


@pytest.mark.parametrize(("options", "properties"), OPTIONS)
def test_options_are_read_leniently(
    capture: Any, v1: Any, event: Any, options: dict[str, Any], properties: dict[str, Any]
) -> None:
    """Words and numbers for true and false, and numbers for names."""
    response = v1(event(options=options), headers={"PostHog-Sdk-Info": "-"})
    (record,) = capture.records_of(response)
    assert record.value["properties"] == properties


def test_cookieless_events_are_kept_by_address(capture: Any, v1: Any, event: Any) -> None:
    """Their distinct_id stands for everybody, so it must not put them all in one partition."""
    sent = event(distinct_id="$posthog_cookieless", options={"cookieless_mode": True})
    (record,) = capture.records_of(v1(sent))
    assert record.key == f"{capture.token}:127.0.0.1"
    assert record.value["flags"] == FLAG_COOKIELESS


def test_historical_batches_go_to_their_topic(capture: Any, v1: Any, event: Any) -> None:
    """So that they hold up no fresh events."""
    sent = event(timestamp="2020-01-02T03:04:05Z")
    response = v1(sent, historical_migration=True)
    assert response.json()["results"][sent["uuid"]] == {"result": "ok"}
    assert capture.records_of(response) == []
    (record,) = capture.records_of(response, "_historical")
    assert record.value["uuid"] == sent["uuid"]
    assert record.value["flags"] == FLAG_HISTORICAL


def test_internal_batches_have_no_address(capture: Any, v1: Any, event: Any) -> None:
    """`capture_internal` stands for events that our own servers send about others."""
    (record,) = capture.records_of(v1(event(), capture_internal=True))
    assert record.value["ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("ahead", "options", "expected", "flags"),
    [
        (timedelta(0), {}, timedelta(0), 0),
        (timedelta(seconds=100), {}, timedelta(seconds=100), 0),  # that may be the network
        (timedelta(hours=2), {}, timedelta(0), 0),
        (timedelta(hours=-2), {}, timedelta(0), 0),
        (timedelta(hours=2), {"disable_skew_correction": True}, timedelta(hours=2), 0),
        (timedelta(days=2), {"disable_skew_correction": True}, timedelta(0), FLAG_TIME_CLAMPED),
    ],
)
def test_clocks_that_are_wrong_are_corrected(
    capture: Any,
    v1: Any,
    event: Any,
    ahead: timedelta,
    options: dict[str, Any],
    expected: timedelta,
    flags: int,
) -> None:
    """By the request's own timestamp, in steps of five minutes, and never far into the future."""
    client_time = (datetime.now(UTC) + ahead).isoformat()
    sent = event(timestamp=client_time, options=options)
    (record,) = capture.records_of(v1(sent, headers={"PostHog-Request-Timestamp": client_time}))
    value = record.value
    off = value["timestamp"] - value["received_at"] - expected / timedelta(microseconds=1)
    assert abs(off) < 60_000_000
    assert value["flags"] == flags


def test_times_that_no_column_holds(capture: Any, v1: Any, event: Any) -> None:
    """The event is of its receipt, with the client's own text beside it; the request's is none."""
    never, fine = event(timestamp="0001-01-01T00:00:00Z"), event(timestamp="2026-01-02T03:04:05Z")
    answer = v1(never, fine, headers={"PostHog-Request-Timestamp": "0001-01-01T00:00:00Z"})
    of_receipt, kept = (record.value for record in capture.records_of(answer))
    assert of_receipt["timestamp"] == of_receipt["received_at"]
    assert of_receipt["flags"] == FLAG_TIME_CLAMPED
    assert of_receipt["client_timestamp"] == never["timestamp"]
    assert of_receipt["sent_at"] is kept["sent_at"] is None
    assert kept["timestamp"] == 1_767_323_045_000_000
    assert kept["flags"] == 0


@pytest.mark.parametrize("spelling", ["  {} ", "{{{}}}", "urn:uuid:{}"])
def test_unusual_spellings_of_a_uuid(capture: Any, v1: Any, event: Any, spelling: str) -> None:
    """The result stands under the usual one and the client's own, and the record has the usual."""
    usual = str(uuid.uuid4())
    mine = spelling.format(usual.upper())
    response = v1(event(uuid=mine))
    assert response.json()["results"] == {usual: {"result": "ok"}, mine: {"result": "ok"}}
    (record,) = capture.records_of(response)
    assert record.value["uuid"] == usual


def test_the_nil_uuid_stands_for_none(capture: Any, v1: Any, event: Any) -> None:
    """Its events would be each other's duplicates: they get a uuid, and their result as asked."""
    nil = str(uuid.UUID(int=0))
    response = v1(event(uuid=nil))
    assert response.json()["results"] == {nil: {"result": "ok"}}
    (record,) = capture.records_of(response)
    assert uuid.UUID(record.value["uuid"]).version == 7


def test_evidence_of_an_event_too_large(capture: Any, v1: Any, event: Any) -> None:
    """A record says whose it was and how it began, so that it becomes a dead letter."""
    sent = event(properties={"x": "y" * 2_000_000})
    (record,) = capture.records_of(v1(sent))
    assert record.value["refused"] == "too_large"
    assert record.value["uuid"] == sent["uuid"]
    assert record.value["bytes"] == len(json.dumps(sent))
    assert record.value["sha256"] == sha256(json.dumps(sent).encode()).hexdigest()
    assert len(record.raw) < 100_000
    assert record.key == f"{capture.token}:ada"
    assert record.headers == [("tidemark-record", b"1")]


@pytest.mark.parametrize(
    "large", [{"properties": {"x": "y" * 999_000}}, {"session_id": "y" * 999_000}]
)
def test_evidence_keeps_what_a_record_would(
    large: dict[str, Any], capture: Any, v1: Any, event: Any
) -> None:
    """No nil uuid, no NUL, and the address as key for a visitor without cookies."""
    nil = str(uuid.UUID(int=0))
    options = {"cookieless_mode": True}
    response = v1(
        event(event="odd", uuid=nil, distinct_id="a\0b", **large),
        event(event="cookieless", options=options, **large),
        event(event="kept"),
    )
    assert response.json()["results"][nil] == {"result": "drop", "details": "event_too_big"}
    records = {record.value["event"]: record for record in capture.records_of(response)}
    odd, cookieless, kept = (records[name] for name in ("odd", "cookieless", "kept"))
    assert uuid.UUID(odd.value["uuid"]).version == 7
    assert odd.value["distinct_id"] == "a\ufffdb"
    assert odd.key == f"{capture.token}:a\ufffdb"
    assert cookieless.key == f"{capture.token}:{kept.value['ip']}"
    assert kept.headers == [("tidemark-record", b"2")]
