"""`$set` and `$set_once` beside `properties` move into them, as the client's own bytes."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from capture_api.refusal import bad_request

_object_decoder = msgspec.json.Decoder(dict[str, Raw])


NOTHING = (b"", b"null", b"[]")
"""JSON of an object that is not there; the last is what PHP makes of an empty array."""


def splice_person_properties(properties: bytes, set_: Raw, set_once: Raw) -> bytes:
    """The properties with `$set` and `$set_once` in them.

    Where the properties already have one, the two objects are merged and the outer keys win; only
    then is the object written anew, and still each value keeps its bytes.
    """
    for key, raw in (("$set", set_), ("$set_once", set_once)):
        value = bytes(raw)
        if value in NOTHING:
            continue
        if not value.startswith(b"{"):
            raise bad_request(f"`{key}` is not an object", "bad_properties")
        quoted = f'"{key}"'.encode()
        # A key may be spelled with escapes, hence the second test.
        if quoted in properties or b"\\u0024" in properties:
            properties = _merge(properties, key, value)
        elif properties[1:-1].strip():
            properties = b"".join((properties[:-1], b",", quoted, b":", value, b"}"))
        else:
            properties = b"".join((b"{", quoted, b":", value, b"}"))
    return properties


def _merge(properties: bytes, key: str, value: bytes) -> bytes:
    outer = _read_object(properties)
    inner = bytes(outer.get(key, b"null"))
    merged = {**_read_object(inner), **_read_object(value)} if inner.startswith(b"{") else None
    outer[key] = Raw(value) if merged is None else Raw(msgspec.json.encode(merged))
    return msgspec.json.encode(outer)


def _read_object(text: bytes) -> dict[str, Raw]:
    try:
        return _object_decoder.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"failed to parse properties: {error}", "bad_properties") from None
