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
from collections.abc import Iterator
from math import isinf

from capture_api.turns import AT_ONCE_BYTES, pause
from capture_api.wire.pieces import holds, joined, pieces
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


_NOT_OF_NUMBER = re.compile(rb"[^0-9.eE+-]")
_NOT_BACKSLASH = re.compile(rb"[^\\]")
_SUSPECTS_AT_ONCE = 500


def out_of_range(text: bytes, bones: bytes) -> bytes | None:
    """The first number of valid JSON that rounds to infinity as a double, or None.

    `bones` is the text's skeleton. With more than MAX_SUSPECTS candidates: TOO_MANY_SUSPECTS.
    """
    if len(text) <= AT_ONCE_BYTES:
        if NUMBER_WITH_EXPONENT not in bones and _LONG_RUN not in _samples(text):
            return None
    elif not holds(bones, NUMBER_WITH_EXPONENT) and not holds(_samples(text), _LONG_RUN):
        return None
    seen, in_string = 0, False
    for count, start in enumerate(_suspects(text)):
        in_string ^= _odd_quotes(text, seen, start)
        seen = start
        number = _NUMBER.match(text, start)
        if not in_string and number is not None and isinf(float(number[0])):
            return number[0]
        if count == MAX_SUSPECTS:
            return TOO_MANY_SUSPECTS
        if count % _SUSPECTS_AT_ONCE == _SUSPECTS_AT_ONCE - 1:
            pause()
    return None


def _samples(text: bytes) -> bytes:
    """Every so many bytes one, with zeros for digits."""
    if len(text) <= AT_ONCE_BYTES:
        return text[::_STRIDE].translate(_TO_ZEROS)
    return joined([_samples(piece) for piece in pieces(text)])  # of whole strides


def _suspects(text: bytes) -> Iterator[int]:
    """Where numbers begin that may be too large."""
    start = 0
    while start < len(text):
        # To a byte that is in no number: the next piece begins with it.
        end = start + AT_ONCE_BYTES
        border = _NOT_OF_NUMBER.search(text, end)
        end = border.start() if border is not None else len(text)
        for suspect in _SUSPECT.finditer(text, start, end):
            yield suspect.start() + 1
        start = end
        if start < len(text):
            pause()


def _odd_quotes(text: bytes, start: int, end: int) -> bool:
    """Whether the number of quotes that open or close strings between the two is odd."""
    odd = False
    while start < end:
        # A quote does so unless it is escaped, and a backslash may be so itself.
        border = _NOT_BACKSLASH.search(text, start + AT_ONCE_BYTES, end)
        piece_end = border.end() if border is not None else end
        between = text[start:piece_end].replace(rb"\\", b"").replace(rb"\"", b"")
        odd ^= between.count(b'"') % 2 == 1
        start = piece_end
        if start < end:
            pause()
    return odd
