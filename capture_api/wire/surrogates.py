r"""Lone UTF-16 surrogates in JSON text, as JavaScript makes them when it cuts an emoji in two.

`"\ud83d"` on its own stands for nothing that UTF-8 can hold, so no reader further down could take
it. It becomes U+FFFD, written `\ufffd`: six bytes for six bytes, everything else stays.
"""

from __future__ import annotations

import re

MAX_REPLACED = 100_000
"""Surrogates replaced in one text; with more of them it stays invalid, and is refused as that."""

_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# A high half that no low one follows, or a low half that no high one precedes.
_LONE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|(?<!%b\\u[dD])[c-fC-F][0-9a-fA-F]{2})" % (_LOW, _HIGH)
)


def has_surrogates(text: bytes) -> bool:
    """Whether the text may hold surrogates at all."""
    return b"\\ud" in text or b"\\uD" in text


def replace_lone_surrogates(text: bytes) -> bytes:
    """The JSON text with its lone surrogate escapes replaced, up to MAX_REPLACED of them."""
    if b"\0" in text:  # no JSON
        return text
    # `\\ud83d` is a backslash and five letters: escaped backslashes step aside for a while.
    hidden = text.replace(rb"\\", b"\0\0")
    return _LONE.sub(rb"\\ufffd", hidden, MAX_REPLACED).replace(b"\0\0", rb"\\")
