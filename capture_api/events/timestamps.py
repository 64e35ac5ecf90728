"""When an event happened, worked out from what the client and the two clocks say. Pure.

Times are whole microseconds since 1970-01-01 UTC. The inputs are the event's own `timestamp` text,
its `offset` (its age in ms when it was sent), the time of sending by the client's clock, and the
time of receipt by ours. The rules, in order:

    offset given          received_at - offset, unless the offset is stale (below)
    timestamp readable    timestamp - skew, where skew = sent_at - received_at in whole quanta
    otherwise             received_at

What cannot be is as good as not said: a result before 1900, such as of the year 1 that programs
write for "never", or one far in the future gives way to received_at, and a `sent_at` that no record
can hold counts as none.

posthog-js measures `offset` once, when it first sends an event, and sends the same event again
after a failure: then the offset is too small by the time that passed since. The event's own UUID
of version 7 says by the same clock when it was made, so that its age is sent_at - made. Both
attempts then give one time, and a later attempt does not move an event into another day.

Invariant: the result is at least EARLIEST_US and at most FUTURE_LIMIT_US after receipt.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from capture_api.events.record import EARLIEST_US, LATEST_US
from capture_api.events.spelled_times import parse_spelled_time

SKEW_QUANTUM_US = 300_000_000
"""The client's clock is corrected in steps of this: what is smaller is the network's delay."""
FUTURE_LIMIT_US = 23 * 3_600_000_000
"""An event may claim to happen this long after its receipt, not longer."""

STALE_OFFSET_US = 1_000_000
"""A first attempt is sent within this after the offset was measured."""
LONGEST_RETRY_US = 24 * 3_600_000_000
"""Clients do not try for longer; a UUID that is older yet was made for something else."""

TIME_LENGTH = 100
"""Characters that a time may have: the patterns and parsers here are not made for long texts."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_2021_MS = 1_609_459_200_000

# A date and at once a zone, `2024-05-06+02:00`, is to `datetime.fromisoformat` a date and a clock.
_DATE_AND_TIME = re.compile(r"[\dW-]{7,10}(?:$|[^\d+-])", re.ASCII)
# What it does not read by itself.
_LEAP_SECOND = re.compile(r"(?<=:)60(?=\D|$)")
_SPACE_BEFORE_ZONE = re.compile(r"\s+(?=[+-]\d\d:?\d{0,2}$)")
_ZONE_IN_WORDS = re.compile(r"\s*(?:UTC|GMT|Z)$", re.IGNORECASE)
_NUMBER = re.compile(r"(-?)(\d{9,19})(?:\.(\d+))?")


def event_time(
    *,
    text: str | None,
    offset_ms: int | None,
    skew: int,
    received_at: int,
    made_at: int | None = None,
    sent_at: int | None = None,
) -> tuple[int, bool]:
    """When the event happened, and whether receipt took the place of a time that cannot be.

    `skew` is the `clock_skew` of the request, or 0 where the event asks not to be corrected.
    `made_at` and `sent_at`, by the client's clock, matter only where there is an offset.
    """
    if offset_ms is not None:
        time = received_at - _age(offset_ms * 1000, made_at, sent_at)
    else:
        parsed = parse_time(text) if text else None
        if parsed is None:
            return received_at, False
        time = parsed - skew
    return bounded_time(time, received_at)


def bounded_time(time: int, received_at: int) -> tuple[int, bool]:
    """The time, or that of receipt in place of one that cannot be; and whether it is replaced."""
    if EARLIEST_US <= time <= received_at + FUTURE_LIMIT_US:
        return time, False
    return received_at, True


def usable_sent_at(time: int) -> int | None:
    """A time of sending; None for one that no record can hold, which says nothing about a clock."""
    return time if EARLIEST_US <= time <= LATEST_US else None


def _age(offset: int, made_at: int | None, sent_at: int | None) -> int:
    """How old the event was when it was sent."""
    if made_at is None or sent_at is None:
        return offset
    age = sent_at - made_at
    return age if STALE_OFFSET_US < age - offset <= LONGEST_RETRY_US else offset


def clock_skew(sent_at: int | None, received_at: int) -> int:
    """How far the client's clock is ahead of ours, in whole quanta, halves away from zero."""
    if sent_at is None:
        return 0
    skew = sent_at - received_at
    quanta = (abs(skew) + SKEW_QUANTUM_US // 2) // SKEW_QUANTUM_US
    return quanta * SKEW_QUANTUM_US if skew > 0 else -quanta * SKEW_QUANTUM_US


def parse_time(text: str) -> int | None:
    """The time a client wrote, or None when nobody can tell what it means. Without a zone: UTC.

    Reads ISO 8601 and RFC 3339, Unix times in s, ms, µs or ns, and what `spelled_times.py` knows.
    """
    if len(text) > TIME_LENGTH:
        return None
    if text[10:11] == "T":  # nearly always
        try:
            return _microseconds(datetime.fromisoformat(text))
        except ValueError:
            pass
    return _parse_unusual_time(text.strip())


def sent_at_in_body(value: str | None) -> int | None:
    """The `sent_at` of a batch. One without a zone says nothing about the client's clock: None."""
    if value is None or len(value) > TIME_LENGTH:
        return None
    try:
        time = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return usable_sent_at(_microseconds(time)) if time.tzinfo is not None else None


def sent_at_in_query(text: str) -> int | None:
    """The `_` or `sent_at` of a query, in ms. What reads as 2020 or before was in s: None."""
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        return None
    milliseconds = int(text)
    return usable_sent_at(milliseconds * 1000) if milliseconds >= _YEAR_2021_MS else None


def _microseconds(time: datetime) -> int:
    try:
        since = (time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - _EPOCH
    except OverflowError:  # a zone that reaches before year 1
        raise ValueError("out of range") from None
    return since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds


def _parse_unusual_time(text: str) -> int | None:
    number = _NUMBER.fullmatch(text)
    if number:
        return _unix_time(negative=bool(number[1]), digits=number[2], fraction=number[3] or "")
    for reading in (_iso_with_repairs, parse_spelled_time):
        try:
            return _microseconds(reading(text))
        except (ValueError, OverflowError):
            continue
    return None


def _iso_with_repairs(text: str) -> datetime:
    repaired = _ZONE_IN_WORDS.sub("+00:00", _SPACE_BEFORE_ZONE.sub("", text.upper()))
    if not _DATE_AND_TIME.match(repaired):
        raise ValueError(text)
    leap = _LEAP_SECOND.search(repaired)
    if leap:
        repaired = f"{repaired[: leap.start()]}59{repaired[leap.end() :]}"
    return datetime.fromisoformat(repaired) + timedelta(seconds=1 if leap else 0)


def _unix_time(*, negative: bool, digits: str, fraction: str) -> int:
    """The unit shows in the number of digits: s up to 11, ms up to 14, µs up to 17, else ns."""
    scale = 6 if len(digits) <= 11 else 3 if len(digits) <= 14 else 0 if len(digits) <= 17 else -3
    nanoseconds = int(digits + (fraction + "0" * 12)[: scale + 3])
    time = nanoseconds // 1000
    return -time if negative else time
