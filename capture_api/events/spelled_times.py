"""Times as people, mail and programs spell them.

    05/06/2024 4:00 PM   2024.05.06   6 May 2024   Mon, 06 May 2024 12:00:00 GMT
    Mon May 06 2024 12:00:00 GMT+0200 (CEST)       Mon May  6 12:00:00 CEST 2024

Month before day, as in the United States; without a zone, UTC; without a clock, midnight. A zone
that means several, such as BST of London and of Dhaka, makes the text no time: none is better than
one that is hours off. Patterns rather than `strptime`: one that fits no text costs a microsecond,
and hostile texts fit none.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{0,6}(?:,\s*|\s+))?"
_TIME_OF_DAY = (
    r"[\sT,]+(?P<hour>\d{1,2}):(?P<minute>\d\d)"
    r"(?::(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?(?:\s*(?P<half>[ap])m)?"
)
# The name that follows an offset only repeats it: `(CEST)`, `[Europe/Berlin]`, `CEST`.
_ZONE = (
    r"(?:\s*(?P<zone>[a-z]{1,5}|(?:gmt|utc)\s*[+-]\d\d?(?::?[0-5]\d)?|[+-]\d\d(?::?[0-5]\d)?)"
    r"(?:(?<=\d)\s+[a-z]{1,5}|\s*\([^()]*\)|\s*\[[^][]*\])?)?"
)
_OFFSET = re.compile(r"(?:[a-z]{3}\s*)?([+-])(\d\d?):?(\d\d)?", re.IGNORECASE | re.ASCII)
_FORMS = [
    re.compile(_WEEKDAY + form, re.IGNORECASE | re.ASCII)
    for form in (
        *(
            f"{date}(?:{_TIME_OF_DAY})?{_ZONE}"
            for date in (
                r"(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})",
                r"(?P<month>\d{1,2})[/.](?P<day>\d{1,2})[/.](?P<year>\d{4}|\d\d)",
                r"(?P<day>\d{1,2})[\s-](?P<name>[a-z]{3,9})[\s,-]+(?P<year>\d{4}|\d\d)",
                r"(?P<name>[a-z]{3,9})\.?\s+(?P<day>\d{1,2})(?:,\s*|\s+)(?P<year>\d{4})",
                r"(?P<year>\d{4})年(?P<month>\d{1,2})月(?P<day>\d{1,2})日",
            )
        ),
        rf"(?P<name>[a-z]{{3,9}})\s+(?P<day>\d{{1,2}}){_TIME_OF_DAY}{_ZONE}\s+(?P<year>\d{{4}})",
    )
]
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip
_HOURS_OF_ZONE = {
    "z": 0, "ut": 0, "utc": 0, "gmt": 0, "est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7,
    "mdt": -6, "pst": -8, "pdt": -7,  # so far as in mail (RFC 2822), the rest of one meaning only
    "wet": 0, "west": 1, "cet": 1, "cest": 2, "eet": 2, "eest": 3, "jst": 9, "aest": 10, "aedt": 11,
    "nzst": 12, "nzdt": 13,
}  # fmt: skip


def parse_spelled_time(text: str) -> datetime:
    """The time, with its zone. Raises ValueError when the text fits no form, or no calendar."""
    for form in _FORMS:
        found = form.fullmatch(text)
        if found is not None:
            return _time(found.groupdict())
    raise ValueError(text)


def _time(parts: dict[str, str | None]) -> datetime:
    year = int(parts["year"] or 0)
    if len(parts["year"] or "") == 2:
        year += 2000 if year < 70 else 1900
    name = parts.get("name")
    hour = int(parts["hour"] or 0)
    if parts["half"]:
        if not 1 <= hour <= 12:
            raise ValueError("hours before and after noon go from 1 to 12")
        hour = hour % 12 + (12 if parts["half"] in "pP" else 0)
    return datetime(
        year,
        _month(name) if name else int(parts["month"] or 0),
        int(parts["day"] or 0),
        hour,
        int(parts["minute"] or 0),
        int(parts["second"] or 0),
        int(f"{parts['fraction'] or 0:0<6}"[:6]),
        _zone(parts["zone"]),
    )


def _month(name: str) -> int:
    for number, month in enumerate(_MONTHS, 1):
        if name.lower() in (month, month[:3], month[:4]):
            return number
    raise ValueError(f"no month: {name}")


def _zone(text: str | None) -> timezone:
    if text is None:
        return UTC
    offset = _OFFSET.fullmatch(text)
    if offset is not None:
        sign, hour, minute = offset.groups()
        minutes = int(hour) * 60 + int(minute or 0)
        return timezone(timedelta(minutes=-minutes if sign == "-" else minutes))
    hours = _HOURS_OF_ZONE.get(text.lower())
    if hours is None:
        raise ValueError(f"no zone: {text}")
    return timezone(timedelta(hours=hours))
