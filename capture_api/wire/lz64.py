"""LZString's `compressToBase64` undone: what posthog-js of old did to its payload.

    base64 text → bits, the first of each byte its highest → codes → UTF-16 code units → UTF-8

It is LZ78 whose codes grow from two bits. A code stands for one new code unit (8 or 16 bits
follow it), for the end, or for a phrase: what an earlier code stood for and the code unit after
it. So every phrase is a stretch of the output, and the dictionary holds only where it starts and
ends. Invariants: time and memory are linear in input and output, and the output never has more
than `limit` bytes, nor more than OUTPUT_BYTES.
"""

from __future__ import annotations

import binascii
import codecs
import itertools
from array import array

from capture_api.refusal import Refused, bad_request, too_large
from capture_api.turns import AT_ONCE_BYTES, pause
from capture_api.wire.pieces import joined

INPUT_BYTES = 1 << 20
"""Longest text that is decoded: it takes about half a second, in pieces with pauses between
(`turns.py`), and stands for some 3 MB of JSON. Only browsers of years ago send any."""
OUTPUT_BYTES = 20 << 20
"""Most that comes out of it; in UTF-16 it takes twice as much for a while."""

_DIGITS_OF_NOTHING = 4
"""What an empty text may take. More that begin with the code of the end are something else."""

_NEW_UNIT, _END = 1, 2  # codes that are not phrases; 0 is a new byte, 3 the first phrase
_READ_BYTES = 8
_CODES_AT_ONCE = 4096
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def decode_lz64(text: bytes, limit: int) -> bytes:
    """The UTF-8 content of the text. Refuses (400, 413) what is damaged or too large."""
    limit = min(limit, OUTPUT_BYTES)
    if len(text) > INPUT_BYTES:
        raise _too_large(f"has more than {INPUT_BYTES} bytes")
    digits = text.rstrip(b"=")
    try:
        # Its padding is not base64's: missing bits are zeros.
        packed = binascii.a2b_base64(digits + b"A" * (-len(digits) % 4), strict_mode=True)
    except binascii.Error:
        raise _damaged("it is not base64") from None
    try:
        content = _in_utf8(_units(packed, limit))
    except UnicodeDecodeError:
        raise _damaged("its content is not valid UTF-16") from None
    if len(content) > limit:
        raise _over(limit)
    if not content and len(digits) > _DIGITS_OF_NOTHING:
        raise _damaged("it ends at its beginning; is it base64 of something else?")
    return content


def _in_utf8(units: bytearray) -> bytes:
    decoder = codecs.getincrementaldecoder("utf-16-le")()
    parts = []
    for start in range(0, len(units), AT_ONCE_BYTES):
        if start:
            pause()
        parts.append(decoder.decode(units[start : start + AT_ONCE_BYTES]).encode())
    parts.append(decoder.decode(b"", final=True).encode())
    return joined(parts)


def _units(packed: bytes, limit: int) -> bytearray:
    """The code units, two bytes each; at most `limit` of them."""
    # Mirrored, the next code is always the lowest bits of what was read.
    source = packed.translate(_MIRRORED)
    at = 0
    bits = 0  # read and not used yet: their value
    held = 0  # their number
    width, mask = 2, 3
    room = 1  # codes until they get one bit wider
    starts = array("I", (0, 0, 0))  # of phrases in the output, in bytes
    ends = array("I", (0, 0, 0))
    output = bytearray()
    start = end = 0  # the phrase before
    most = 2 * limit
    for count in itertools.count(1):
        if not count % _CODES_AT_ONCE:
            pause()
        if held < width + 16:  # a new code unit follows its code at once
            chunk = source[at : at + _READ_BYTES]
            bits |= int.from_bytes(chunk, "little") << held
            held += 8 * len(chunk)
            at += _READ_BYTES
        code = bits & mask
        bits >>= width
        held -= width
        if code > _END:
            if code < len(starts):
                output += output[starts[code] : ends[code]]
            elif code == len(starts) and end:  # the phrase that this very code completes
                output += output[start:end]
                output += output[start : start + 2]
            else:
                raise _damaged("a code in it stands for nothing")
        elif code == _END:
            break
        else:
            size = 16 if code == _NEW_UNIT else 8
            output += (bits & ((1 << size) - 1)).to_bytes(2, "little")
            bits >>= size
            held -= size
            starts.append(end)
            ends.append(end + 2)
            room -= 1
            if not room:
                room = 1 << width
                width += 1
                mask = room - 1 | room
        if held < 0:
            break
        if end:  # the phrase before, and the first unit of this one
            starts.append(start)
            ends.append(end + 2)
            room -= 1
            if not room:
                room = 1 << width
                width += 1
                mask = room - 1 | room
        start, end = end, len(output)
        if end > most:
            raise _over(limit)
    if held >= 0:
        return output
    raise _damaged("it ends too early")


def _damaged(what: str) -> Refused:
    return bad_request(f"invalid lz64 data: {what}", "bad_lz64")


def _over(limit: int) -> Refused:
    return _too_large(f"holds more than {limit} bytes")


def _too_large(what: str) -> Refused:
    return too_large(
        f"maximum event size exceeded: the lz64 payload {what}; send smaller batches, or gzip"
    )
