"""UUIDs of events and requests: checked where the client gives one, else minted (version 7).

A gateway may send one request twice, to two servers. Events without a UUID are then the same
events both times because both servers mint from the same seed: position n gets UUID n.
"""

from __future__ import annotations

import re
from hashlib import shake_128
from os import urandom
from random import getrandbits  # seeded anew in a process that is forked
from typing import NamedTuple

from capture_api.turns import AT_ONCE_EVENTS, pause

NIL_UUID = "00000000-0000-0000-0000-000000000000"

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_OTHER_SPELLINGS = re.compile(
    r"(?:urn:uuid:)?\{?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})\}?"
)
_LONGEST = len("urn:uuid:{") + 36 + len("}")
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class MintSeed(NamedTuple):
    """What makes the minted UUIDs of a request the same on every server."""

    at_us: int
    key: bytes


def normal_uuid(text: str) -> str | None:
    """The UUID in 36 lower-case characters, or None when the text is not a UUID."""
    if _CANONICAL.fullmatch(text):  # nearly always
        return text
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    lower = text.lower()
    if _CANONICAL.fullmatch(lower):
        return lower
    other = _OTHER_SPELLINGS.fullmatch(lower)
    return "-".join(other.groups()) if other else None


def uuid_time(uuid: str) -> int | None:
    """The time in a UUID of version 7 (36 characters), in µs; None for other versions."""
    return int(uuid[:8] + uuid[9:13], 16) * 1000 if uuid[14] == "7" else None


def mint_uuids(now_us: int, count: int, seed: MintSeed | None = None) -> list[str]:
    """So many UUIDs of version 7: new ones for this time, or those of the seed.

    Their order within one call is random. A seed's n-th UUID does not depend on their count.
    """
    if seed is not None:
        now_us = seed.at_us
    milliseconds = f"{now_us // 1000:012x}"
    prefix = f"{milliseconds[:8]}-{milliseconds[8:]}-7"
    noise = (urandom(10 * count) if seed is None else _noise(seed, 10 * count)).hex()
    uuids: list[str] = []
    while True:
        uuids += [
            f"{prefix}{noise[at : at + 3]}-{_VARIANT[noise[at + 3]]}{noise[at + 4 : at + 7]}"
            f"-{noise[at + 8 : at + 20]}"
            for at in range(20 * len(uuids), 20 * min(count, len(uuids) + AT_ONCE_EVENTS), 20)
        ]
        if len(uuids) == count:
            return uuids
        pause()


def mint_uuid(now_us: int) -> str:
    """One new UUID of version 7, unique but not secret: a receipt's."""
    milliseconds, bits = now_us // 1000, getrandbits(74)
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031  # half the time of an f-string
        milliseconds >> 16,
        milliseconds & 0xFFFF,
        bits >> 62,
        0x8000 | bits >> 48 & 0x3FFF,
        bits & 0xFFFF_FFFF_FFFF,
    )


def _noise(seed: MintSeed, count: int) -> bytes:
    return shake_128(b"%d:%b" % seed).digest(count)
