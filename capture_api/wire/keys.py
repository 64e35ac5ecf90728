"""How many keys a JSON text has, told without parsing it.

Readers further down make something of every key, and a record could hold a hundred thousand. Only
a long text can hold many, so nearly every event costs one comparison.
"""

from __future__ import annotations

import re

MAX_KEYS = 10_000
"""Keys that the properties of one event may have, on all levels together."""

_SHORTEST_MEMBER = len('"":0,')
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def too_many_keys(text: bytes) -> bool:
    """Whether a valid JSON object has more than MAX_KEYS keys, those of objects in it included."""
    if len(text) <= MAX_KEYS * _SHORTEST_MEMBER or text.count(b":") <= MAX_KEYS:
        return False
    return _STRING.sub(b"", text).count(b":") > MAX_KEYS
