r"""Lone UTF-16 surrogates in JSON text, as JavaScript makes them when it cuts an emoji in two.

`"\ud83d"` on its own stands for nothing that UTF-8 can hold, so no reader further down could take
it. It becomes U+FFFD, written `\ufffd`: six bytes for six bytes, everything else stays.
"""

from __future__ import annotations

import re

# One match an escape, so that `\\ud83d` (a backslash and five letters) is stepped over; whole
# pairs match first and stay.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def has_surrogates(text: bytes) -> bool:
    """Whether the text may hold surrogates at all."""
    return b"\\ud" in text or b"\\uD" in text


def replace_lone_surrogates(text: bytes) -> bytes:
    """The JSON text with every lone surrogate escape replaced."""
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match["lone"] else match[0], text)
