"""A record's head, of either layout, read by itself: for whoever looks at single records.

    layout 2   [2,"uuid",…]⏎{properties}                     ─┬─▶ fields by name, as spelled
    layout 1   {"v":1,"uuid":"…",…,"properties":{properties}} ─┘   (take_apart)
                                        broken ones, too ─────────▶ scalars by name (read_head)

Invariant: only the head's own fields are taken for such, never what a client calls so in its
`properties`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from assets.pipeline.columns import HEAD

BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading a value raises that is no record; a ValidationError: it is JSON, but no object."""

# A field of a head in either layout. Bytes that are no UTF-8 may stand in a broken one's texts.
_FIELD = re.compile(
    rb'\s*(?:"(?P<name>\w+)"\s*:\s*)?'
    rb'(?P<scalar>"(?:[^"\\\n]|\\.)*"|-?[0-9]+|null|true|false)\s*[,\]}]'
)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list = msgspec.json.Decoder(list[msgspec.Raw])
_anything = msgspec.json.Decoder()


class Head(NamedTuple):
    """The scalars of a head by name; of a broken value, those that stand before the fault."""

    fields: dict[str, Any]
    broken: bool


def is_two_lines(value: bytes) -> bool:
    """Whether a value has the form of layout 2, sound or not."""
    return value.lstrip()[:1] == b"["


def take_apart(value: bytes) -> tuple[dict[str, msgspec.Raw], bytes]:
    """The head's fields by name, and `properties`, as they are spelled. Raises what is BROKEN."""
    head, line_break, rest = value.partition(b"\n")
    if line_break and is_two_lines(head):
        return dict(zip(HEAD.names, _list.decode(head), strict=False)), rest.strip()
    fields = _fields.decode(value)
    return fields, bytes(fields.pop("properties", b"{}"))


def read_head(value: bytes) -> Head:
    """What the head of a value says, however broken the value is."""
    try:
        fields, _ = take_apart(value)
    except BROKEN:
        return Head(_before_the_fault(value), broken=True)
    return Head({name: _scalar(bytes(raw)) for name, raw in fields.items()}, broken=False)


def _before_the_fault(value: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = iter(HEAD.names) if is_two_lines(value) else None
    at = len(value) - len(value.lstrip()) + 1
    while field := _FIELD.match(value, at):
        at = field.end()
        if (names is None) is (field["name"] is None):
            break
        name = next(names, "") if names is not None else field["name"].decode()
        found[name] = _scalar(field["scalar"])
    return found


def _scalar(raw: bytes) -> Any:
    """A scalar; None for what is deeper, or cannot be read."""
    if raw.startswith((b"{", b"[")):
        return None
    try:
        return _anything.decode(raw)
    except BROKEN:
        return None
