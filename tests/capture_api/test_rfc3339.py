"""RFC 3339 times, read strictly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture_api.events import rfc3339
from capture_api.events.rfc3339 import parse_rfc3339

DAY_US = 86_400_000_000

GOOD = [
    ("1970-01-01T00:00:00Z", 0),
    ("1970-01-01T00:00:00.5Z", 500_000),
    ("1970-01-01T00:00:00.1234567Z", 123_456),
    ("1970-01-01t00:00:01z", 1_000_000),
    ("1970-01-01 00:00:01Z", 1_000_000),
    ("1970-01-01T05:30:00+05:30", 0),
    ("1969-12-31T18:30:00.25-05:30", 250_000),
    ("1969-12-31T23:59:59Z", -1_000_000),
    ("1970-01-01T00:00:00-00:00", 0),
    ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
    ("2016-12-31T23:59:60.25+00:00", 1_483_228_800_250_000),
    ("0001-01-01T00:00:00Z", -719_162 * DAY_US),
    ("0001-01-01T00:00:00+23:59", -719_162 * DAY_US - 86_340_000_000),
    ("0000-12-31T00:00:00Z", -719_163 * DAY_US),
    ("0000-02-29T00:00:00Z", -719_469 * DAY_US),
    ("9999-12-31T23:59:59-23:59", 253_402_387_139_000_000),
]

BAD = [
    "",
    "now",
    "0",
    "1767323045",
    "2026-01-02",
    "2026-01-02T03:04Z",
    "2026-01-02T03:04:05",
    "2026-01-02T03:04:05+00",
    "2026-01-02T03:04:05+0000",
    "2026-01-02T03:04:05+24:00",
    "2026-01-02T03:04:05+00:60",
    "2026-01-02T03:04:05.Z",
    "2026-01-02T03:04:05,5Z",
    "2026-01-02T24:00:00Z",
    "2026-01-02T03:60:00Z",
    "2026-01-02T03:04:61Z",
    "2026-13-02T03:04:05Z",
    "2026-02-29T03:04:05Z",
    "20260102T030405Z",
    "2026-W01-5T03:04:05Z",
    "2026-01-02_03:04:05Z",
    " 2026-01-02T03:04:05Z",
    "2026-01-02T03:04:05Z\n",
    "+2026-01-02T03:04:05Z",
    "12026-01-02T03:04:05Z",
    "２０２６-01-02T03:04:05Z",
    "2026-01-02T03:04:05." + "1" * 10_000 + "Z",
]


@pytest.mark.parametrize(("text", "time"), GOOD)
def test_a_time_is_read(text: str, time: int) -> None:
    """To the microsecond, in any zone and year."""
    assert parse_rfc3339(text) == time


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_no_time(text: str) -> None:
    """Nothing is guessed."""
    assert parse_rfc3339(text) is None


zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones))
def test_it_is_what_python_writes(time: datetime) -> None:
    """Both ways of reading agree with the calendar."""
    expected = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parse_rfc3339(time.isoformat()) == expected
    assert rfc3339._parse_with_care(time.isoformat()) == expected


@given(st.text() | st.from_regex(rfc3339._FORM))
def test_any_text(text: str) -> None:
    """It is a time or none, and both ways of reading agree."""
    assert parse_rfc3339(text) == rfc3339._parse_with_care(text)
