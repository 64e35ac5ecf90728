"""LZString's `compressToBase64`, written for the tests of what undoes it.

What leaves it is what lz-string 1.5 makes of the same text: `test_lz64.py` holds some to compare.
"""

from __future__ import annotations

import base64
from array import array


def compress_to_base64(text: str) -> str:
    """The text as old versions of posthog-js sent it. Lone surrogates are allowed."""
    units = array("H", text.encode("utf-16-le", "surrogatepass"))
    bits: list[int] = []
    width, room = 2, 2

    def put(value: int, size: int) -> None:
        bits.extend(value >> at & 1 for at in range(size))

    def count() -> None:
        nonlocal width, room
        room -= 1
        if not room:
            room = 1 << width
            width += 1

    codes: dict[tuple[int, ...], int] = {}  # of phrases
    unsaid: set[int] = set()  # code units that have a code the reader has not been told yet

    def emit(phrase: tuple[int, ...]) -> None:
        unit = phrase[0]
        if len(phrase) == 1 and unit in unsaid:
            unsaid.remove(unit)
            wide = unit > 0xFF
            put(int(wide), width)
            put(unit, 16 if wide else 8)
            count()
        else:
            put(codes[phrase], width)
        count()

    phrase: tuple[int, ...] = ()
    for unit in units:
        if (unit,) not in codes:
            codes[unit,] = len(codes) + 3
            unsaid.add(unit)
        longer = (*phrase, unit)
        if longer in codes:
            phrase = longer
        else:
            emit(phrase)
            codes[longer] = len(codes) + 3
            phrase = (unit,)
    if phrase:
        emit(phrase)
    put(2, width)
    return _digits(bits)


def growing(codes: int) -> bytes:
    """A stream each code of which stands for the longest phrase yet and one unit more."""
    bits = [0, 0, 1, 0, 0, 0, 0, 1, 1, 0]  # a new byte: "a"
    width, room = 3, 4
    for code in range(4, 4 + codes):
        bits += [code >> at & 1 for at in range(width)]
        room -= 1
        if not room:
            room = 1 << width
            width += 1
    bits += [0] * (-len(bits) % 24)
    packed = int("".join(map(str, bits)), 2).to_bytes(len(bits) // 8, "big")
    return base64.b64encode(packed)


def _digits(bits: list[int]) -> str:
    """Base64 of the bits, with at least one more bit, padded as LZString pads."""
    digits = len(bits) // 6 + 1
    number = int("".join(map(str, bits)) or "0", 2) << (6 * digits - len(bits))
    spare = -digits % 4
    packed = (number << 6 * spare).to_bytes((digits + spare) * 3 // 4, "big")
    return base64.b64encode(packed).decode()[:digits] + "=" * spare
