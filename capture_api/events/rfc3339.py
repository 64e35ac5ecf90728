"""RFC 3339 times, read strictly: a date, a time of day and a zone, nothing left out or guessed."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_FORM = re.compile(
    r"([0-9]{4})(-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:)([0-9]{2})"
    r"(?:\.([0-9]{1,32}))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
# Nearly always, and read by `datetime` alone.
_USUAL_FORM = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}"
    r"(?:\.[0-9]{1,32})?(?:Z|[+-][0-9]{2}:[0-5][0-9])"
)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1)
_CALENDAR_DAYS = 146_097
"""The days of 400 years, after which the calendar repeats itself."""
_DAY_US, _HOUR_US, _MINUTE_US, _SECOND_US = 86_400_000_000, 3_600_000_000, 60_000_000, 1_000_000


def parse_rfc3339(text: str) -> int | None:
    """The time in µs since 1970-01-01 UTC, what is finer cut off; None for anything else.

    The years 0000 to 9999, so the result may lie a little outside of what `datetime` can hold.
    """
    if _USUAL_FORM.fullmatch(text):
        try:
            past = datetime.fromisoformat(text) - _EPOCH_UTC
        except (ValueError, OverflowError):
            return _parse_with_care(text)
        return past.days * _DAY_US + past.seconds * _SECOND_US + past.microseconds
    return _parse_with_care(text)


def _parse_with_care(text: str) -> int | None:
    """Leap seconds, the year 0, other letters, and zones that reach out of the calendar."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    year, date, minutes, second, fraction, sign, hour_off, minute_off = found.groups()
    leap_second = second == "60"
    shifted = year == "0000"
    try:
        local = datetime.fromisoformat(
            f"{'0400' if shifted else year}{date}T{minutes}{'59' if leap_second else second}"
        )
    except ValueError:  # no such day or hour
        return None
    since = local - _EPOCH
    time = since.days * _DAY_US + since.seconds * _SECOND_US
    if fraction:
        time += int(fraction[:6].ljust(6, "0"))
    if leap_second:
        time += _SECOND_US
    if shifted:
        time -= _CALENDAR_DAYS * _DAY_US
    if sign:
        hours, minutes_off = int(hour_off), int(minute_off)
        if hours > 23 or minutes_off > 59:
            return None
        zone = hours * _HOUR_US + minutes_off * _MINUTE_US
        time -= zone if sign == "+" else -zone
    return time
