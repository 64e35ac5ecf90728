"""An exported event becomes the record that the edge would have made of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from capture_api.events.exported import exported_value
from capture_api.events.record import FLAG_DISTINCT_ID_CUT, FLAG_HISTORICAL
from capture_api.refusal import Refused
from tests.exports import exported, line
from tests.records import read_value, uuid_of

BEGUN_AT = 1_790_000_000_000_000


def record_of(value: bytes) -> dict[str, Any]:
    """The record of a line, in project 7."""
    return read_value(exported_value(value, 7, BEGUN_AT))


def test_the_head_says_what_the_export_says() -> None:
    """Identity, time and receipt come from the line; the project is the one imported into."""
    record = record_of(line(3))
    assert record["uuid"] == uuid_of(3)
    assert (record["project_id"], record["event"], record["distinct_id"]) == (
        7,
        "$pageview",
        "person-3",
    )
    assert record["timestamp"] == 1_683_356_892_123_456
    assert record["received_at"] == record["timestamp"] + 2_000_000
    assert (record["ip"], record["flags"]) == ("203.0.113.9", FLAG_HISTORICAL)
    assert record["client_timestamp"] is record["sent_at"] is record["offset_ms"] is None


def test_nothing_of_a_line_is_lost() -> None:
    """Properties stay as they are, what else there is stands in `$exported`."""
    said = exported(3, elements_chain='a:href="/x"', team_id=12, later_field=[1, {"a": None}])
    record = record_of(json.dumps(said).encode())
    assert record["properties"] == {
        **said["properties"],
        "$elements_chain": 'a:href="/x"',
        "$exported": {
            "person_id": said["person_id"],
            "person_properties": {"plan": "free"},
            "team_id": 12,
            "later_field": [1, {"a": None}],
        },
    }


def test_json_in_strings_is_the_same_as_json() -> None:
    """As Parquet has it, and as a line of it has it: the same properties."""
    said = exported(3, person_properties=None)
    spelled = {**said, "properties": json.dumps(said["properties"])}
    assert record_of(json.dumps(spelled).encode()) == record_of(json.dumps(said).encode())


@pytest.mark.parametrize("spelled", [{"email": "a@b.c"}, '{"email": "a@b.c"}'])
def test_what_is_set_goes_back_into_the_properties(spelled: object) -> None:
    """But for what stands there already, which `set` only repeats."""
    assert record_of(line(3, set=spelled))["properties"]["$set"] == {"email": "a@b.c"}
    there = line(3, properties={"$set": {"email": "other"}}, set=spelled, set_once=None)
    properties = record_of(there)["properties"]
    assert properties["$set"] == {"email": "other"}
    assert properties["$exported"]["set"] == spelled


@pytest.mark.parametrize(
    "spelled",
    [
        "2023-05-06T07:08:12.123456Z",
        "2023-05-06 07:08:12.123456",
        "2023-05-06T09:08:12.123456+02:00",
        1_683_356_892_123_456,
    ],
)
def test_times_as_exports_spell_them(spelled: object) -> None:
    """Without a zone they are UTC; they are taken as they are, however long ago, or to come."""
    assert record_of(line(3, timestamp=spelled))["timestamp"] == 1_683_356_892_123_456
    to_come = record_of(line(3, timestamp="2199-01-01T00:00:00Z", created_at=None))
    assert (to_come["timestamp"], to_come["received_at"]) == (7_226_582_400_000_000, BEGUN_AT)


def test_the_name_of_the_api_for_a_uuid() -> None:
    """The events API calls it `id`; a long distinct_id is cut as the edge cuts it."""
    said = exported(3, id=uuid_of(5), distinct_id="x" * 300)
    del said["uuid"]
    record = record_of(json.dumps(said).encode())
    assert (record["uuid"], len(record["distinct_id"])) == (uuid_of(5), 200)
    assert record["flags"] == FLAG_HISTORICAL | FLAG_DISTINCT_ID_CUT


def test_half_an_emoji_is_replaced() -> None:
    """In the line and in JSON within a string, as the edge does it."""
    broken = line(3, properties={"a": "b"}).replace(b'"b"', b'"\\ud83d"')
    assert record_of(broken)["properties"]["a"] == "�"
    inside = line(3, properties="X").replace(b'"X"', b'"{\\"a\\": \\"\\\\ud83d\\"}"')
    assert record_of(inside)["properties"]["a"] == "�"


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"uuid": None}, "missing_exported_field"),
        ({"uuid": "42"}, "bad_uuid"),
        ({"uuid": "00000000-0000-0000-0000-000000000000"}, "missing_exported_field"),
        ({"timestamp": None}, "missing_exported_field"),
        ({"timestamp": "yesterday"}, "bad_time"),
        ({"created_at": [1]}, "bad_time"),
        ({"event": ""}, "missing_event_name"),
        ({"event": None}, "missing_event_name"),
        ({"distinct_id": ""}, "missing_distinct_id"),
        ({"properties": [1]}, "bad_properties"),
        ({"properties": "no object"}, "bad_properties"),
        ({"properties": {"a": "x" * 1_000_000}}, "too_large"),
        ({"person_properties": {"a": "x" * 1_000_000}}, "too_large"),
        ({"properties": {str(n): 1 for n in range(10_001)}}, "too_many_keys"),
    ],
)
def test_what_is_no_event_is_refused(changed: dict[str, Any], code: str) -> None:
    """With the edge's own codes, and two for what an export must name."""
    with pytest.raises(Refused) as refused:
        exported_value(line(3, **changed), 7, BEGUN_AT)
    assert refused.value.code == code


@pytest.mark.parametrize("value", [b"no json", b"[1]", b'"text"', b"{", b"\xff"])
def test_what_is_no_object_is_no_line(value: bytes) -> None:
    """Whoever reads the file says so."""
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        exported_value(value, 7, BEGUN_AT)
