"""A request's records as bytes in a segment of the spool, and back.

    frame    length u32 · records u32 · CRC-32 u32 · payload        (little endian)
    payload  MessagePack of [seconds since 1970 when it was spooled, [[topic, value, key], …]]

The checksum covers length, number and payload, so a frame that was only partly written, or a tail
of zeros that a power cut left, is told from a whole one. The layout's version is the segment's
first eight bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from capture_api.events.records import Record

SEGMENT_MAGIC = b"TMSPOOL1"
HEAD = struct.Struct("<III")
_COVERED = struct.Struct("<II")

_Payload = tuple[float, list[Record]]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Payload)


@dataclass(frozen=True)
class Frames:
    """Whole frames of a piece of a segment: their records, and how many bytes they take."""

    records: list[Record]
    written_at: float  # of the first
    length: int


def encode_frame(records: Sequence[Record], written_at: float) -> bytes:
    """One frame."""
    payload = _encoder.encode((written_at, records))
    covered = _COVERED.pack(len(payload), len(records))
    checksum = zlib.crc32(payload, zlib.crc32(covered))
    return b"".join((HEAD.pack(len(payload), len(records), checksum), payload))


def frame_length(head: bytes) -> int:
    """What the head says that its frame takes."""
    length: int = HEAD.unpack_from(head)[0]
    return HEAD.size + length


def walk(data: bytes, offset: int) -> tuple[int, int]:
    """Where the whole frames from `offset` on end, and how many records they have."""
    total = 0
    while True:
        found = _frame_at(data, offset)
        if found is None:
            return offset, total
        end, count, _ = found
        offset, total = end, total + count


def decode_frames(data: bytes) -> Frames:
    """The whole frames at the beginning of the bytes."""
    offset, written_at, records = 0, 0.0, []
    while (found := _frame_at(data, offset)) is not None:
        end, _, payload = found
        at, some = _decoder.decode(payload)
        if not offset:
            written_at = at
        records.extend(some)
        offset = end
    return Frames(records, written_at, offset)


def _frame_at(data: bytes, offset: int) -> tuple[int, int, memoryview] | None:
    """End, number of records and payload of the frame, if it is whole."""
    start = offset + HEAD.size
    if start > len(data):
        return None
    length, count, checksum = HEAD.unpack_from(data, offset)
    end = start + length
    if end > len(data):
        return None
    payload = memoryview(data)[start:end]
    if zlib.crc32(payload, zlib.crc32(_COVERED.pack(length, count))) != checksum:
        return None
    return end, count, payload
