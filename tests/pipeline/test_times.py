"""Times from the edge to the columns: no batch rejects for its times what the edge takes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from assets.pipeline.validate import judge
from capture_api.events.records import Request, build_records
from capture_api.events.rfc3339 import parse_rfc3339
from capture_api.events.timestamps import sent_at_in_query
from capture_api.protection.routing import Router, Topics
from capture_api.v1 import events as v1
from capture_api.v1.batch import event_uuids, parse_batch, read_rarities
from capture_api.wire.payload import parse_payload

NOW = 1_772_625_600_000_000
TOKEN = "phc_test"
RECEIPT = "019cb000-0000-7000-8000-000000000000"
ROUTE = Router(Topics("events", "events_historical", "events_overflow"), None).route(7, False)

YEAR_1 = "0001-01-01T00:00:00Z"
YEAR_9999 = "9999-12-31T23:59:59.999999Z"

rfc3339 = st.sampled_from(
    [YEAR_1, YEAR_9999, "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "1899-12-31T23:59:59Z"]
) | st.datetimes().map(lambda time: f"{time.isoformat()}Z")
times = (
    rfc3339
    | st.sampled_from(["Mon Jan 01 0001 00:00:00 GMT+1400 (LINT)", "1/1/0001", "-9999999999999999"])
    | st.integers(-(10**19), 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
)
offsets = (
    st.integers(-(10**18), 10**18)
    | st.sampled_from([6 * 10**12, -(2**63), 2**63 - 1, 4.1e12])
    | st.floats(allow_nan=False, allow_infinity=False)
)
uuids = st.integers(0, 2**48 - 1).map(lambda ms: str(UUID(int=ms << 80 | 7 << 76 | 2 << 62 | 1)))


def given_or_not(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What a client may also leave out."""
    return st.none() | strategy


def check(values: list[bytes]) -> None:
    """There are records, and none is rejected."""
    assert values
    assert judge(pa.array(values, pa.binary())).rejections == {}


@given(
    given_or_not(times),
    given_or_not(offsets),
    given_or_not(uuids),
    given_or_not(rfc3339),
    st.text("0123456789", max_size=16),
    st.booleans(),
)
@example(YEAR_1, None, None, None, "", False)
@example(YEAR_9999, None, None, YEAR_9999, "", False)
@example(None, 6 * 10**12, None, None, "", False)
@example("2026-03-04T12:00:00Z", None, None, YEAR_1, "", False)
@example("2026-03-04T12:00:00Z", None, None, None, "253402300799000", False)
def test_v0(
    timestamp: Any,
    offset: Any,
    uuid: str | None,
    sent_at: str | None,
    query: str,
    ignore: bool,
) -> None:
    """Whatever an event, its batch and the query say."""
    event = {
        "event": "e",
        "distinct_id": "d",
        "timestamp": timestamp,
        "offset": offset,
        "uuid": uuid,
        "properties": {"$ignore_sent_at": ignore},
    }
    body = {"api_key": TOKEN, "batch": [event], "sent_at": sent_at}
    request = Request(NOW, RECEIPT, "10.0.0.1", "agent", "", sent_at_in_query(query), False)
    payload = parse_payload(json.dumps(body).encode())
    check([value for _, value, _ in build_records(payload, 7, request, ROUTE, [])])


@given(rfc3339, rfc3339, st.booleans(), given_or_not(uuids))
@example(YEAR_1, "2026-03-04T12:00:00Z", False, None)
@example("2026-03-04T12:00:00Z", YEAR_1, False, None)
@example("2026-03-04T12:00:00Z", YEAR_9999, False, None)
@example("2299-12-31T23:59:59Z", "2299-12-31T23:59:59Z", True, None)
def test_v1(timestamp: str, request_time: str, uncorrected: bool, uuid: str | None) -> None:
    """Whatever an event and its request say."""
    event = {
        "event": "e",
        "distinct_id": "d",
        "timestamp": timestamp,
        "uuid": uuid or RECEIPT,
        "options": {"disable_skew_correction": uncorrected},
    }
    text = json.dumps({"created_at": request_time, "batch": [event]}).encode()
    batch, sent = parse_batch(text), parse_rfc3339(request_time)
    assert sent is not None
    request = v1.Request(
        TOKEN, NOW, RECEIPT, sent, "10.0.0.1", "agent", "", b"", read_rarities(text)
    )
    built = v1.build_records(batch, event_uuids(batch.batch), 7, request, ROUTE)
    assert built.results == [v1.OK]
    check([value for _, value, _ in built.records])


@given(st.datetimes(datetime(1900, 1, 1), datetime(2026, 3, 5)))
def test_what_columns_hold_is_kept(time: datetime) -> None:
    """A time that can be is not touched."""
    body = {"api_key": TOKEN, "event": "e", "distinct_id": "d", "timestamp": f"{time.isoformat()}Z"}
    request = Request(NOW, RECEIPT, "10.0.0.1", "agent", "", None, False)
    payload = parse_payload(json.dumps(body).encode())
    [(_, value, _)] = build_records(payload, 7, request, ROUTE, [])
    written = judge(pa.array([value], pa.binary())).columns.column("timestamp")[0].as_py()
    assert written == parse_rfc3339(f"{time.isoformat()}Z")
