"""The skeleton of a JSON text: a quarter of its bytes, in which rare things are looked for first.

Looking for a property's name in a whole batch costs as much as a tenth of parsing it, and there are
several to look for. So one pass drops all bytes but a few, and the rest is searched: quotes,
separators, `$`, `_`, the letter e and a letter each of `true` and `false`. In the skeleton

    "$ignore_sent_at"    is  "$e_e_"
    "a":-1.5e3,          is  "",e,       and no number without exponent leaves an e there
    "a":true,            is  "",ue,

Invariant: what is in the text is in the skeleton. The reverse need not be so: look again.
"""

from __future__ import annotations

from capture_api.turns import AT_ONCE_BYTES
from capture_api.wire.pieces import joined, pieces

_SEPARATORS = b":,[]}"
_KEPT = b'eE"$_uf' + _SEPARATORS
_DROPPED = bytes(set(range(256)) - set(_KEPT))
_SPELLED_ALIKE = bytes.maketrans(b"E:[]}", b"e,,,,")

NUMBER_WITH_EXPONENT = b",e,"


def skeleton(text: bytes) -> bytes:
    """The skeleton of a text, or of a part of one."""
    if len(text) > AT_ONCE_BYTES:
        return joined([skeleton(piece) for piece in pieces(text)])
    return text.translate(_SPELLED_ALIKE, _DROPPED)
