"""How deeply a JSON text is nested, told without parsing it.

Readers further down recurse, and a body of a few kilobytes can nest thousands of times. A text
with few brackets cannot be deep, so nearly every event costs only searches and counts.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate

from capture_api.turns import pause

DEPTH_LIMIT = 128
"""Levels of objects and arrays that `properties` may have, itself included."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STEPS = bytes.maketrans(b"{[}]", b"\x01\x01\xff\xff")  # +1 and -1
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{[}]"))
_BRACKETS_AT_ONCE = 1 << 15


def too_deep(text: bytes, limit: int = DEPTH_LIMIT) -> bool:
    """Whether valid JSON nests deeper than the limit."""
    if text.find(b"{", 1) < 0 and text.find(b"[", 1) < 0:
        return False
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    steps = _STRING.sub(b"", text).translate(_STEPS, _NOT_BRACKETS)
    level = deepest = 0
    for start in range(0, len(steps), _BRACKETS_AT_ONCE):
        if start:
            pause()
        some = array("b", steps[start : start + _BRACKETS_AT_ONCE])
        deepest = max(deepest, max(accumulate(some, initial=level)))
        level += sum(some)
    return deepest > limit
