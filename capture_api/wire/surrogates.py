r"""Lone UTF-16 surrogates in JSON text, as JavaScript makes them when it cuts an emoji in two.

`"\ud83d"` on its own stands for nothing that UTF-8 can hold, so no reader further down could take
it. It becomes U+FFFD, written `\ufffd`: six bytes for six bytes, everything else stays.
"""

from __future__ import annotations

import re

from capture_api.turns import AT_ONCE_BYTES, pause
from capture_api.wire.pieces import holds, joined

MAX_REPLACED = 100_000
"""Surrogates replaced in one text; with more of them it stays invalid, and is refused as that."""

_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# A high half that no low one follows, or a low half that no high one precedes.
_LONE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|(?<!%b\\u[dD])[c-fC-F][0-9a-fA-F]{2})" % (_LOW, _HIGH)
)

_NOT_OF_ESCAPES = re.compile(rb"[^\\u0-9a-fA-F]")


def has_surrogates(text: bytes) -> bool:
    """Whether the text may hold surrogates at all."""
    return holds(text, b"\\ud", b"\\uD")


def replace_lone_surrogates(text: bytes) -> bytes:
    """The JSON text with its lone surrogate escapes replaced, up to MAX_REPLACED of them."""
    if holds(text, b"\0"):  # no JSON
        return text
    parts = []
    start, left = 0, MAX_REPLACED
    while start < len(text):
        border = _NOT_OF_ESCAPES.search(text, start + AT_ONCE_BYTES) if left else None
        end = border.start() if border is not None else len(text)
        piece, count = _replace(text[start:end], left) if left else (text[start:end], 0)
        parts.append(piece)
        start, left = end, left - count
        if start < len(text):
            pause()
    return joined(parts)


def _replace(text: bytes, most: int) -> tuple[bytes, int]:
    # `\\ud83d` is a backslash and five letters: escaped backslashes step aside for a while.
    hidden = text.replace(rb"\\", b"\0\0")
    replaced, count = _LONE.subn(rb"\\ufffd", hidden, most)
    return replaced.replace(b"\0\0", rb"\\"), count
