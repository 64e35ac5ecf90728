"""Long bytes, worked on piece by piece with a pause between two (`turns.py`).

Each gives what the same step on the whole would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import TypeVar

from capture_api.turns import AT_ONCE_BYTES, pause

Text = TypeVar("Text", bytes, memoryview)


def joined(parts: list[bytes]) -> bytes:
    """The parts as one. Takes them out of their list, so that they are not held twice."""
    if len(parts) == 1:
        return parts.pop()
    if sum(map(len, parts)) <= AT_ONCE_BYTES:
        return b"".join(parts)
    whole = BytesIO()
    parts.reverse()
    while parts:
        whole.write(parts.pop())
        pause()
    return whole.getvalue()  # not copied: it is nobody else's


def pieces(text: Text) -> Iterator[Text]:
    """The text in pieces, with a pause after each but the last."""
    if len(text) <= AT_ONCE_BYTES:
        yield text
        return
    for start in range(0, len(text), AT_ONCE_BYTES):
        if start:
            pause()
        yield text[start : start + AT_ONCE_BYTES]


def holds(text: bytes, *marks: bytes) -> bool:
    """Whether one of the marks is in the text."""
    if len(text) <= AT_ONCE_BYTES:
        for mark in marks:  # noqa: SIM110  # the quicker way
            if mark in text:
                return True
        return False
    overlap = max(map(len, marks)) - 1
    for start in range(0, len(text), AT_ONCE_BYTES):
        if start:
            pause()
        end = start + AT_ONCE_BYTES + overlap
        if any(text.find(mark, start, end) >= 0 for mark in marks):
            return True
    return False


def count(text: bytes, byte: bytes) -> int:
    """How often a byte is in the text."""
    return sum([piece.count(byte) for piece in pieces(text)])
