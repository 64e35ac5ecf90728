"""Content encodings undone: gzip, deflate, br, zstd, each bounded while it inflates.

    body, encoding, limit ──▶ content, or 413 as soon as it is known to be over the limit

A few kilobytes can inflate to gigabytes. Invariant: what has been made of a body is never more
than the limit and one step of its decoder, and a stream that is damaged, ends too early or has
something else behind it is refused (400), not guessed at. What is long is done with pauses
(`turns.py`).
"""

from __future__ import annotations

import brotli
import zstandard
from isal import isal_zlib

from capture_api.refusal import Refused, bad_request, too_large
from capture_api.turns import AT_ONCE_BYTES, pause
from capture_api.wire.decoding import inflate as inflate_gzip
from capture_api.wire.decoding import inflate_stream
from capture_api.wire.pieces import joined

ENCODINGS = ("gzip", "deflate", "br", "zstd")
"""The names that `Content-Encoding` may have."""

BROTLI_STEP_BYTES = AT_ONCE_BYTES
"""The decoder makes up to twice as much as it is asked for at once."""
ZSTD_STREAMS = 16
"""Frames that may stand one after the other: each costs a decoder of its own."""

_ZLIB_MARK = b"\x78"
_ZLIB_WINDOW, _RAW_WINDOW = 15, -15  # zlib's numbers for: 32 KiB window, with and without wrapping
_ZSTD_INFLATES_BITS = 15
"""A zstd block has at least 4 bytes and becomes at most 128 KiB: 2 to the power of this."""
_ZSTD_STEP_BYTES = 16
_ZSTD_MOST_BYTES = 16 << 20
"""What one step may make, lest it takes long."""


def inflate_as(encoding: str, payload: bytes, limit: int) -> bytes:
    """The content of a body in one of the ENCODINGS."""
    if encoding == "gzip":
        return inflate_gzip(payload, limit)
    if encoding == "deflate":
        return _inflate_deflate(payload, limit)
    if encoding == "br":
        return _inflate_brotli(payload, limit)
    return _inflate_zstd(payload, limit)


def _inflate_deflate(payload: bytes, limit: int) -> bytes:
    """HTTP means zlib's format by this name; some clients leave its wrapping out."""
    window = _ZLIB_WINDOW if payload[:1] == _ZLIB_MARK else _RAW_WINDOW
    stream = isal_zlib.decompressobj(wbits=window)
    parts: list[bytes] = []
    try:
        end = inflate_stream(stream, payload, 0, limit, parts)
    except isal_zlib.error:  # type: ignore[misc]  # its stub calls the class an instance
        raise _broken("deflate") from None
    if not stream.eof or end < len(payload):
        raise _broken("deflate")
    return joined(parts)


def _inflate_brotli(payload: bytes, limit: int) -> bytes:
    stream = brotli.Decompressor()
    parts: list[bytes] = []
    size = at = 0
    try:
        while True:
            piece = b""
            if stream.can_accept_more_data():
                piece = payload[at : at + AT_ONCE_BYTES]
                at += len(piece)
            # Only what it takes to see that the limit is passed.
            step = min(BROTLI_STEP_BYTES, limit + 1 - size)
            part = stream.process(piece, output_buffer_limit=step)
            parts.append(part)
            size += len(part)
            if size > limit:
                raise _over(limit)
            if stream.is_finished():
                break
            if not part and not piece:  # it has used everything, and wants more
                raise _broken("br")
            if size > AT_ONCE_BYTES or at < len(payload):
                pause()
    except brotli.error:
        raise _broken("br") from None
    if at < len(payload):
        raise _broken("br")
    return joined(parts)


def _inflate_zstd(payload: bytes, limit: int) -> bytes:
    """Fed in pieces so small that none can inflate to much more than what is left of the limit."""
    parts: list[bytes] = []
    size = at = 0
    try:
        for _ in range(ZSTD_STREAMS):
            stream = zstandard.ZstdDecompressor().decompressobj()
            while not stream.eof:
                most = min(limit - size, _ZSTD_MOST_BYTES)
                piece = max(_ZSTD_STEP_BYTES, most >> _ZSTD_INFLATES_BITS)
                if at >= len(payload):
                    raise _broken("zstd")
                part = stream.decompress(payload[at : at + piece])
                at += piece
                if part:
                    size += len(part)
                    if size > limit:
                        raise _over(limit)
                    parts.append(part)
                if size > AT_ONCE_BYTES or at > AT_ONCE_BYTES:
                    pause()
            at = min(at, len(payload)) - len(stream.unused_data)
            if at == len(payload):
                return joined(parts)
    except zstandard.ZstdError:
        pass
    raise _broken("zstd")


def _broken(encoding: str) -> Refused:
    return bad_request(
        f"invalid {encoding} data: the stream is damaged, ends too early or is not {encoding}",
        "bad_encoding",
    )


def _over(limit: int) -> Refused:
    return too_large(
        f"maximum event size exceeded: the body inflates to more than {limit} bytes; "
        "send smaller batches"
    )
