"""Whether bytes are UTF-8, piece by piece where they are long."""

from __future__ import annotations

from capture_api.turns import AT_ONCE_BYTES, pause

_LONGEST = 4
"""Bytes of a character."""


HINT = "if it is compressed, say so in the Content-Encoding header"
"""What is mostly behind bytes that are no UTF-8."""


def check_utf8(text: bytes) -> None:
    """Raises the UnicodeDecodeError that decoding the text would."""
    if text.isascii():
        return
    start = 0
    while start < len(text):
        end = start + AT_ONCE_BYTES
        for _ in range(_LONGEST - 1):  # no character is cut in two
            if end < len(text) and text[end] & 0xC0 == 0x80:
                end -= 1
        try:
            text[start:end].decode()
        except UnicodeDecodeError:
            _raise_error(text, start, end)
        start = end
        if start < len(text):
            pause()


def _raise_error(text: bytes, start: int, end: int) -> None:
    """Raise the error between start and end, with what the bytes behind them tell about it."""
    try:
        text[start : end + _LONGEST].decode()
    except UnicodeDecodeError as error:
        raise UnicodeDecodeError(
            "utf-8", text, start + error.start, start + error.end, error.reason
        ) from None
