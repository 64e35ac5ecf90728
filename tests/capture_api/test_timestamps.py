"""Event time: every row of the rules, and every spelling of a time that is understood."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture_api.events.record import EARLIEST_US, LATEST_US
from capture_api.events.timestamps import (
    FUTURE_LIMIT_US,
    SKEW_QUANTUM_US,
    clock_skew,
    event_time,
    parse_time,
    sent_at_in_body,
    sent_at_in_query,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000
HOUR = 3600 * SECOND


def us(text: str) -> int:
    """Microseconds of an ISO time with a zone."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


NOW = us("2026-03-04T12:00:00+00:00")
NOON = us("2024-05-06T12:00:00+00:00")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # RFC 3339 and ISO 8601
        ("2024-05-06T12:00:00Z", NOON),
        ("2024-05-06T12:00:00.000Z", NOON),
        ("2024-05-06T12:00:00.123456Z", NOON + 123456),
        ("2024-05-06T12:00:00.123456789Z", NOON + 123456),
        ("2024-05-06T12:00:00.1Z", NOON + 100_000),
        ("2024-05-06t12:00:00z", NOON),
        ("2024-05-06T14:00:00+02:00", NOON),
        ("2024-05-06T14:00:00+0200", NOON),
        ("2024-05-06T14:00:00+02", NOON),
        ("2024-05-06T07:00:00-05", NOON),
        ("2024-05-06T17:30:00+05:30", NOON),
        ("2024-05-06T12:00:00", NOON),
        ("2024-05-06T12:00", NOON),
        ("2024-05-06 12:00:00", NOON),
        ("2024-05-06 12:00:00.5", NOON + 500_000),
        ("2024-05-06 12:00:00+00:00", NOON),
        ("2024-05-06 14:00:00 +02:00", NOON),
        ("2024-05-06 14:00:00 +0200", NOON),
        ("2024-05-06 12:00:00 UTC", NOON),
        ("  2024-05-06T12:00:00Z ", NOON),
        ("2024-05-06", us("2024-05-06T00:00:00+00:00")),
        ("20240506", us("2024-05-06T00:00:00+00:00")),
        ("20240506T120000Z", NOON),
        ("2016-12-31T23:59:60Z", us("2017-01-01T00:00:00+00:00")),
        ("1969-12-31T23:59:59Z", -SECOND),
        ("0001-01-01T00:00:00Z", -62135596800 * SECOND),
        ("9999-12-31T23:59:59.999999Z", 253402300799999999),
        # Unix times
        ("1714996800", NOON),
        ("1714996800.25", NOON + 250_000),
        ("1714996800000", NOON),
        ("1714996800123", NOON + 123_000),
        ("1714996800123.5", NOON + 123_500),
        ("1714996800123456", NOON + 123456),
        ("1714996800123456789", NOON + 123456),
        ("-315619200", -315619200 * SECOND),
        # RFC 2822, slashes, names of months
        ("Mon, 06 May 2024 12:00:00 GMT", NOON),
        ("Mon, 06 May 2024 14:00:00 +0200", NOON),
        ("06 May 2024 12:00:00 -0000", NOON),
        ("2024/05/06 12:00:00", NOON),
        ("2024/05/06", us("2024-05-06T00:00:00+00:00")),
        ("2024/5/6 12:00", NOON),
        ("2024.05.06 12:00:00.5", NOON + 500_000),
        ("5.6.2024 12:00", NOON),
        ("5/6/24 12:00 pm", NOON),
        ("05/06/2024 12:00:00 AM", us("2024-05-06T00:00:00+00:00")),
        ("2024-05-06 04:00 PM", NOON + 4 * HOUR),
        ("May 6, 2024 4:00:00 PM", NOON + 4 * HOUR),
        ("6 May 2024 12:00:00.25", NOON + 250_000),
        ("Sept 6 2024", us("2024-09-06T00:00:00+00:00")),
        ("2024-05-06 05:00 PDT", NOON),
        ("2024-05-06 PST", us("2024-05-06T08:00:00+00:00")),
        ("05/06/1999 07:00 -05:00", us("1999-05-06T12:00:00+00:00")),
        ("2024年5月6日", us("2024-05-06T00:00:00+00:00")),
        # a zone by its offset or its name, repeated or not, before the year
        ("Mon May 06 2024 14:00:00 GMT+0200 (CEST)", NOON),
        ("Mon May 06 2024 14:00:00 GMT+0200 (Central European Summer Time)", NOON),
        ("Mon May 06 2024 14:00:00 GMT+0200 (Mitteleuropäische Sommerzeit)", NOON),
        ("Mon May 06 2024 08:30:00 GMT-0330 (GMT-03:30)", NOON),
        ("Mon May 06 2024 12:00:00 GMT+0000 (Coordinated Universal Time)", NOON),
        ("Mon May  6 14:00:00 CEST 2024", NOON),
        ("Mon May  6 12:00:00 2024", NOON),
        ("Mon May  6 02:00:00 PM GMT+02:00 2024", NOON),
        ("Monday, 06-May-24 12:00:00 GMT", NOON),
        ("Mon, 06 May 2024 14:00:00 +0200 (CEST)", NOON),
        ("Mon, 06 May 2024 12:00:00 UT", NOON),
        ("2024-05-06 14:00:00 CEST", NOON),
        ("2024-05-06T14:00:00 GMT+2", NOON),
        ("2024-05-06 02:00 UTC-10", NOON),
        ("2024-05-06 17:30 UTC+5:30", NOON),
        ("2024-05-06 14:00 GMT +02:00", NOON),
        ("2024-05-06 14:00:00 +0200 CEST", NOON),
        ("2024-05-06 12:00:00 +0000 UTC", NOON),
        ("2024-05-06T14:00:00+02:00[Europe/Berlin]", NOON),
        ("2024-05-06+02:00", us("2024-05-05T22:00:00+00:00")),
        ("2024-05-06-05:00", us("2024-05-06T05:00:00+00:00")),
        ("20240506+0200", None),
        ("6 May 2024 CEST", us("2024-05-05T22:00:00+00:00")),
        # a zone that nobody can tell
        ("Mon, 06 May 2024 12:00:00 BST", None),
        ("Mon May  6 12:00:00 IST 2024", None),
        ("2024-05-06 12:00:00 (CEST)", None),
        ("06 May 2024 12:00 A", None),
        ("2024-05-06 12:00 Europe/Berlin", None),
        ("2024-05-06 12:00 GMT+24", None),
        ("2024-05-06 12:00 GMT+2:60", None),
        ("Mon May 06 2024 12:00:00 GMT+2:00:00", None),
        ("1/2/70", us("1970-01-02T00:00:00+00:00")),
        ("1/2/69", us("2069-01-02T00:00:00+00:00")),
        ("05/06/2024", us("2024-05-06T00:00:00+00:00")),
        ("05/06/2024 12:00:00", NOON),
        ("05/06/2024 01:02:03 PM", NOON + HOUR + 123 * SECOND),
        ("May 6, 2024", us("2024-05-06T00:00:00+00:00")),
        ("May 6, 2024 12:00:00", NOON),
        # not a time
        ("", None),
        ("   ", None),
        ("yesterday", None),
        ("undefined", None),
        ("2024-13-01T00:00:00Z", None),
        ("2024-02-30", None),
        ("2024-05-06T25:00:00Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("13/32/2024", None),
        ("2024-05-06 13:00 PM", None),
        ("2024-05-06 00:00 AM", None),
        ("2024-05-06 12:00 XYZ", None),
        ("Moy 6, 2024", None),
        ("4:00 PM", None),
        ("-0001-01-01T00:00:00Z", None),
        ("+12024-01-01T00:00:00Z", None),
        ("12", None),
        ("1e9", None),
        ("٢٠٢٤-٠٥-٠٦", None),
    ],
)
def test_spellings_of_a_time(text: str, expected: int | None) -> None:
    """Each spelling is read as one time, in UTC where it names no zone, or not at all."""
    assert parse_time(text) == expected


@given(st.text(max_size=40) | st.from_regex(r"[0-9TZ:+./ \-]{1,30}", fullmatch=True))
def test_any_text_is_a_time_or_none(text: str) -> None:
    """Whatever a client writes, reading it ends in a number or None."""
    assert isinstance(parse_time(text), int | None)


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30), timezones=zones),
    st.text(st.characters(exclude_characters="()"), max_size=40),
)
def test_a_spelled_zone_counts(time: datetime, name: str) -> None:
    """What mail, JavaScript and ISO 8601 make of a time in any zone is the same time."""
    time = time.replace(microsecond=0)
    javascript = f"{time:%a %b %d %Y %H:%M:%S GMT%z} ({name})"
    assert {parse_time(text) for text in (format_datetime(time), javascript, str(time))} == {
        us(time.isoformat())
    }


@given(
    st.text(max_size=30) | st.datetimes().map(str),
    st.none() | st.integers(),
    st.none() | st.integers(-(10**18), 10**18),
)
def test_result_stays_within_its_bounds(
    text: str, offset_ms: int | None, sent_at: int | None
) -> None:
    """The result is never past the future limit nor before what a record can hold."""
    skew = clock_skew(sent_at, NOW)
    time, _ = event_time(text=text, offset_ms=offset_ms, skew=skew, received_at=NOW)
    assert EARLIEST_US <= time <= NOW + FUTURE_LIMIT_US


@pytest.mark.parametrize(
    ("skew_seconds", "corrected_seconds"),
    [
        (0, 0),
        (1, 0),
        (149.999999, 0),
        (150, 300),
        (299, 300),
        (449.999999, 300),
        (450, 600),
        (3600, 3600),
        (-1, 0),
        (-149.999999, 0),
        (-150, -300),
        (-449.999999, -300),
        (-450, -600),
        (-7260, -7200),
    ],
)
def test_skew_is_rounded_to_quanta(skew_seconds: float, corrected_seconds: int) -> None:
    """The client's clock is corrected in steps of five minutes, halves away from zero."""
    skew = clock_skew(NOW + round(skew_seconds * SECOND), NOW)
    assert skew == corrected_seconds * SECOND
    assert skew % SKEW_QUANTUM_US == 0


@pytest.mark.parametrize(
    ("text", "offset_ms", "sent_at", "ignore", "expected", "clamped"),
    [
        pytest.param(None, None, None, False, NOW, False, id="nothing: received"),
        pytest.param("nonsense", None, None, False, NOW, False, id="unreadable: received"),
        pytest.param("nonsense", None, NOW, False, NOW, False, id="unreadable, sent_at"),
        pytest.param("2024-05-06T12:00:00Z", None, None, False, NOON, False, id="timestamp"),
        pytest.param(
            "2024-05-06T12:00:00Z", None, NOW - 20 * SECOND, False, NOON, False, id="slow network"
        ),
        pytest.param(
            "2024-05-06T12:00:00Z", None, NOW + HOUR, False, NOON - HOUR, False, id="clock ahead"
        ),
        pytest.param(
            "2024-05-06T12:00:00Z", None, NOW - HOUR, False, NOON + HOUR, False, id="clock behind"
        ),
        pytest.param(
            "2024-05-06T12:00:00Z", None, NOW + HOUR, True, NOON, False, id="sent_at ignored"
        ),
        pytest.param(
            "2024-05-06T12:00:00Z", 5_000, NOW + HOUR, False, NOW - 5 * SECOND, False,
            id="offset wins over all",
        ),
        pytest.param(None, 0, None, False, NOW, False, id="offset 0"),
        pytest.param(None, -1_000, None, False, NOW + SECOND, False, id="negative offset"),
        pytest.param(None, -24 * 3_600_000, None, False, NOW, True, id="offset too far ahead"),
        pytest.param(None, 10**15, None, False, NOW, True, id="offset before year 1"),
        pytest.param(None, 6 * 10**12, None, False, NOW, True, id="offset of 190 years"),
        pytest.param(
            "2026-03-05T11:00:00Z", None, None, False, NOW + 23 * HOUR, False, id="23 h ahead"
        ),
        pytest.param("2026-03-05T11:00:00.000001Z", None, None, False, NOW, True, id="> 23 h"),
        pytest.param(
            "2026-03-06T12:00:00Z", None, NOW + 48 * HOUR, False, NOW, False,
            id="far ahead, but so is the clock",
        ),
        pytest.param(
            "0001-01-01T00:00:00Z", None, NOW + HOUR, False, NOW, True, id="before year 1"
        ),
        pytest.param("0001-01-01T00:00:00Z", None, None, False, NOW, True, id="year 1: never"),
        pytest.param("1899-12-31T23:59:59Z", None, None, False, NOW, True, id="before 1900"),
        pytest.param(
            "1900-01-01T00:00:00Z", None, None, False, EARLIEST_US, False, id="of 1900"
        ),
        pytest.param(
            "1900-01-01T00:00:00Z", None, NOW + HOUR, False, NOW, True, id="of 1900, corrected"
        ),
        pytest.param("9999-12-31T23:59:59Z", None, None, False, NOW, True, id="year 9999"),
    ],
)  # fmt: skip
def test_event_time(
    text: str | None,
    offset_ms: int | None,
    sent_at: int | None,
    ignore: bool,
    expected: int,
    clamped: bool,
) -> None:
    """The rules in their order: offset, timestamp less skew, receipt; then the bounds."""
    skew = 0 if ignore else clock_skew(sent_at, NOW)
    assert event_time(text=text, offset_ms=offset_ms, skew=skew, received_at=NOW) == (
        expected,
        clamped,
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-05-06T12:00:00Z", NOON),
        ("2024-05-06T12:00:00.000+00:00", NOON),
        ("2024-05-06T12:00:00", None),  # whose noon?
        ("0001-01-01T00:00:00Z", None),
        ("1900-01-01T00:00:00Z", EARLIEST_US),
        ("2299-12-31T23:59:59.999999Z", LATEST_US),
        ("2300-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59Z", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("2024-05-06T12:00:00Z" + " " * 100, None),
    ],
)
def test_sent_at_in_body(value: str | None, expected: int | None) -> None:
    """Only an ISO 8601 time with a zone, of a possible year, says how the client's clock stands."""
    assert sent_at_in_body(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1714996800000", NOON),
        ("1714996800", None),  # seconds read as milliseconds lie in 1970
        ("1609459199999", None),  # the last of 2020
        ("1609459200000", 1609459200000_000),
        ("10413791999999", 10413791999999_000),  # the last of 2299
        ("10413792000000", None),
        ("", None),
        ("now", None),
        ("-1714996800000", None),
        ("1714996800000.5", None),
        ("999999999999999", None),
        ("9" * 4000, None),
        ("١٧١٤٩٩٦٨٠٠٠٠٠", None),
    ],
)
def test_sent_at_in_query(text: str, expected: int | None) -> None:
    """Milliseconds of 2021 to 2299 are believed; everything else is passed over."""
    assert sent_at_in_query(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-06T12:00:00" + " " * 100 + "Z",
        "Mon, 6 May 2024 12:00:00 +0000" + " " * 100,
        "1714996800000." + "0" * 100,
    ],
)
def test_long_texts_are_no_times(text: str) -> None:
    """No pattern or parser ever sees more than a time's worth of characters."""
    assert parse_time(text) is None
    assert parse_time(text.replace(" " * 100, " ").replace("0" * 100, "0")) == NOON
