r"""Numbers that no double can hold, as `1e999` or an integer of four hundred digits.

JSON allows them, and the decoder passes over them in bytes that it leaves raw; but readers further
down refuse the whole record, or store infinity.

    text ─▶ a number with an exponent? ─┬─ no, nearly always: done
            300 digits in a row?       ─┘
                                        └─ perhaps ─▶ a large exponent or many digits, and not in a
                                                      string? ─▶ the exact value

The first look is at the skeleton of the text, and never misses one.
"""

from __future__ import annotations

import re
from math import isinf

from capture_api.wire.skeleton import NUMBER_WITH_EXPONENT

MAX_SUSPECTS = 100_000
"""Numbers of one text whose exact value is looked at. More of them than that are no events."""
TOO_MANY_SUSPECTS = b""
"""What is found in such a text: a number with a large exponent, or hundreds of digits, too many."""

_STRIDE = 16
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_RUN = b"0" * (300 // _STRIDE)
"""What every so many bytes of 300 digits look like, once all digits are zeros."""

# From here on may be a number that is too large: an exponent below 100 takes many digits to do so.
_SUSPECT = re.compile(rb"[:,\[\s]-?(?:[0-9][0-9.]*[eE]\+?[0-9]{3}|[0-9]{200})")
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def out_of_range(text: bytes, bones: bytes) -> bytes | None:
    """The first number of valid JSON that rounds to infinity as a double, or None.

    `bones` is the text's skeleton. With more than MAX_SUSPECTS candidates: TOO_MANY_SUSPECTS.
    """
    samples = text[::_STRIDE].translate(_TO_ZEROS)
    if NUMBER_WITH_EXPONENT not in bones and _LONG_RUN not in samples:
        return None
    seen, in_string = 0, False
    for count, suspect in enumerate(_SUSPECT.finditer(text)):
        start = suspect.start() + 1
        # A quote opens or closes a string unless it is escaped, and a backslash may be so itself.
        between = text[seen:start].replace(rb"\\", b"").replace(rb"\"", b"")
        in_string ^= between.count(b'"') % 2 == 1
        seen = start
        number = _NUMBER.match(text, start)
        if not in_string and number is not None and isinf(float(number[0])):
            return number[0]
        if count == MAX_SUSPECTS:
            return TOO_MANY_SUSPECTS
    return None
