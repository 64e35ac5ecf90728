"""Long JSON of events, parsed some events at a time with pauses between (`turns.py`).

    [event, event, …]                   {…, "batch": [event, event, …], …}
    ↑└ parts ┘└ rest┘                   └── head ───┘└ parts ┘└── rest ──┘

The parser cannot be stopped half-way, so it is given parts: from where an event begins to some
`}` that a comma follows. Whether an event ends there, rather than something within one, the parser
finds out: only then do brackets around the part make it valid. If not, twice as much is tried. The
rest is parsed behind the head, so that whatever else the body says, and every error, comes out as
it would of the whole.

Invariant: the events, or the error and its words, are those of the whole text. What has no such
ends, as one event of many megabytes, is parsed at once: 1 to 2.5 ms a megabyte.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Raw

from capture_api.turns import AT_ONCE_BYTES, pause
from capture_api.wire.pieces import pieces

PART_BYTES = 64 << 10
"""Least that is parsed at once."""

_BATCH = re.compile(rb'"batch"\s*+:\s*+\[')
_HEAD_BYTES = 64 << 10
_BATCHES_LOOKED_AT = 16
_FIRST_KEY = re.compile(rb"\s*+(\{[^:{}]{0,100}:)")
_END_OF_OBJECT = re.compile(rb"\}\s*+,\s*+(?=\{)")
_ENDS_LOOKED_AT = 500

_MARK = uuid4().hex
_STAND_IN = b'{"event":"%b","uuid":"","distinct_id":"","timestamp":""}' % _MARK.encode()
"""An event in the place of those that are parsed already."""

_BYTE = re.compile(r"(?<=\(byte )\d+(?=\))")
_INDEX = re.compile(r"(?<=`\$\[)\d+|(?<=`\$\.batch\[)\d+")

T = TypeVar("T")
_raw_decoder = msgspec.json.Decoder(Raw)


def is_array(text: bytes) -> bool:
    """Whether the JSON text is that of an array."""
    return next(filter(None, (piece.lstrip() for piece in pieces(text))), b"")[:1] == b"["


def decode_long(
    text: bytes, whole: msgspec.json.Decoder[T], some: msgspec.json.Decoder[list[Any]]
) -> T:
    """What `whole` makes of the text: a list of events, or something with such a list as `batch`.

    `some` makes a list of the same events.
    """
    if len(text) <= AT_ONCE_BYTES:
        return whole.decode(text)
    pause()
    head = _head(text)
    events: list[Any] = []
    at = len(head)
    for next_at, part in _parts(text, at, some) if head else ():
        events += part
        at = next_at
        pause()
    if not events:
        return whole.decode(text)
    instead = head if is_array(head) else b"%b%b," % (head, _STAND_IN)
    try:
        last: Any = whole.decode(b"".join((instead, memoryview(text)[at:])))
    except msgspec.DecodeError as error:
        moved, more = at - len(instead), len(events) - (instead is not head)
        words = _BYTE.sub(lambda found: _more(found, moved, len(instead)), str(error))
        words = _INDEX.sub(lambda found: _more(found, more), words)
        raise type(error)(words) from None
    if instead is head:
        events += last
        return events  # type: ignore[return-value]  # whole makes a list of events as well
    batch = last.batch
    if not batch or not _is_stand_in(batch[0]):  # there is another `batch` behind this one
        return whole.decode(text)
    events += batch[1:]
    last.batch = events
    return last  # type: ignore[no-any-return]


def _head(text: bytes) -> bytes:
    """The text up to its first event; nothing where that is not found."""
    if is_array(text):
        return text[: text.index(b"[") + 1]
    found = _BATCH.finditer(text, 0, _HEAD_BYTES)
    for batch in itertools.islice(found, _BATCHES_LOOKED_AT):
        head = text[: batch.end()]
        try:
            _raw_decoder.decode(head + b"]}")
        except (msgspec.DecodeError, RecursionError):
            continue
        return head  # valid: that is a key of the outermost object
    return b""


def _parts(
    text: bytes, at: int, some: msgspec.json.Decoder[list[Any]]
) -> Iterator[tuple[int, list[Any]]]:
    """Events from there on, and where the next begins; until the rest is short, or odd."""
    first_key = _FIRST_KEY.match(text, at)
    start_of_event = first_key[1] if first_key is not None else b"{"
    size = PART_BYTES
    while len(text) - at > AT_ONCE_BYTES and at + size < len(text):
        found = _end(text, at + size, at + 2 * size, start_of_event)
        if found is not None:
            end, next_at = found
            try:
                events = some.decode(b"".join((b"[", memoryview(text)[at:end], b"]")))
            except msgspec.ValidationError:
                return
            except msgspec.DecodeError as error:
                place = _BYTE.search(str(error))
                if place is not None and int(place[0]) <= end - at:
                    return  # damaged, or behind the end of the array
            except RecursionError:
                return
            else:
                yield next_at, events
                at, size = next_at, PART_BYTES
                continue
        pause()
        size *= 2


def _end(text: bytes, start: int, stop: int, start_of_event: bytes) -> tuple[int, int] | None:
    """Where an event may end, and the next begin: such as begins like the first one, if any."""
    best = None
    found = _END_OF_OBJECT.finditer(text, start, stop)
    for border in itertools.islice(found, _ENDS_LOOKED_AT):
        if text.startswith(start_of_event, border.end()):
            return border.start() + 1, border.end()
        best = best or border
    return None if best is None else (best.start() + 1, best.end())


def _is_stand_in(event: Any) -> bool:
    if isinstance(event, Raw):
        return bytes(event) == _STAND_IN
    return bool(event.event == _MARK)


def _more(found: re.Match[str], more: int, least: int = 0) -> str:
    number = int(found[0])
    return str(number + more if number >= least else number)
