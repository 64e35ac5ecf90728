"""The `options` of a v1 event, read leniently: SDKs pass on whatever their users gave them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Raw

from capture_api.wire.payload import ABSENT, FALSE, NULL, TRUE

SCALAR_BYTES = 400
"""JSON of a number that is read as true or false; a longer one is nothing sensible."""

_WORDS = {"true": True, "1": True, "false": False, "0": False}


class Options(NamedTuple):
    """What an event's options say; None where they say nothing."""

    cookieless_mode: bool | None = None
    disable_skew_correction: bool | None = None
    product_tour_id: str | None = None
    process_person_profile: bool | None = None


class _Written(msgspec.Struct, gc=False):
    cookieless_mode: Raw = NULL
    disable_skew_correction: Raw = NULL
    product_tour_id: Raw = NULL
    process_person_profile: Raw = NULL


NO_OPTIONS = Options()

_decoder = msgspec.json.Decoder(_Written)
_EMPTY = (ABSENT, NULL, Raw(b"{}"))


def read_options(raw: Raw) -> Options | None:
    """The options, or None when one of them cannot be what it should be."""
    if raw in _EMPTY:  # nearly always
        return NO_OPTIONS
    try:
        written = _decoder.decode(raw)
        return Options(
            _boolean(written.cookieless_mode),
            _boolean(written.disable_skew_correction),
            _identifier(written.product_tour_id),
            _boolean(written.process_person_profile),
        )
    except (msgspec.DecodeError, ValueError, KeyError, RecursionError):
        return None


def _boolean(raw: Raw) -> bool | None:
    """True, false, their words, or a number, where anything but zero is true."""
    if raw == NULL:
        return None
    if raw == TRUE:
        return True
    if raw == FALSE:
        return False
    if len(raw) > SCALAR_BYTES:
        raise ValueError("no sensible number")
    value = msgspec.json.decode(raw, type=str | int | float)
    return _WORDS[value.strip().lower()] if isinstance(value, str) else value != 0


def _identifier(raw: Raw) -> str | None:
    """A string, or a whole number of 64 bits as one."""
    if raw == NULL:
        return None
    value = msgspec.json.decode(raw, type=str | int)
    if isinstance(value, str):
        return value
    if not -(2**63) <= value < 2**64:
        raise ValueError("out of range")
    return str(value)
