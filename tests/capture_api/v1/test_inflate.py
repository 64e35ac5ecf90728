"""Content encodings undone, in process: what was packed comes out, and nothing makes it grow."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from capture_api.refusal import Refused
from capture_api.wire.inflate import ZSTD_STREAMS, inflate_as

LIMIT = 4 << 20


def raw_deflate(content: bytes) -> bytes:
    """Deflate without zlib's wrapping, as some clients send it."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(content) + packer.flush()


def zstd_streamed(content: bytes) -> bytes:
    """zstd that does not say how much is in it."""
    packer = zstandard.ZstdCompressor(level=19).compressobj()
    return packer.compress(content) + packer.flush()


def zstd_in_two(content: bytes) -> bytes:
    """Two frames, one after the other."""
    half = len(content) // 2
    return zstandard.compress(content[:half]) + zstandard.compress(content[half:])


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", lambda content: brotli.compress(content, quality=4)),
    ("zstd", zstandard.compress),
    ("zstd", zstd_streamed),
    ("zstd", zstd_in_two),
]

ids = [f"{encoding}-{number}" for number, (encoding, _) in enumerate(PACKERS)]
each_packer = pytest.mark.parametrize(("encoding", "pack"), PACKERS, ids=ids)


def mixed(size: int) -> bytes:
    """Text that packs neither badly nor well."""
    numbers = random.Random(size)
    words = [b"%d" % numbers.randrange(10**6) for _ in range(997)]
    return b" ".join(numbers.choice(words) for _ in range(size // 6 + 1))[:size]


@each_packer
@pytest.mark.parametrize("size", [0, 1, 100, 300_000, LIMIT])
def test_what_was_packed_comes_out(
    encoding: str, pack: Callable[[bytes], bytes], size: int
) -> None:
    """Up to the limit itself."""
    content = mixed(size)
    assert inflate_as(encoding, pack(content), LIMIT) == content


@each_packer
@pytest.mark.parametrize("factor", [1, 50])
def test_a_bomb_is_given_up(encoding: str, pack: Callable[[bytes], bytes], factor: int) -> None:
    """At the limit, without making much more of it than that."""
    bomb = pack(bytes(LIMIT * factor + 1))
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            inflate_as(encoding, bomb, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
    assert peak < 3 * LIMIT


@each_packer
def test_damage_is_refused(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    """Cut at any place, or not of this encoding at all."""
    packed = pack(mixed(2_000))
    damaged = [packed[:cut] for cut in range(1, len(packed), 7)]
    for payload in (*damaged, b'{"batch":[]}', b"\0", b"\xff" * 99):
        with pytest.raises(Refused) as refused:
            inflate_as(encoding, payload, LIMIT)
        assert refused.value.status == 400


@pytest.mark.parametrize(("encoding", "pack"), PACKERS[1:], ids=ids[1:])
def test_what_stands_behind_a_stream_is_refused(
    encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    """It would be lost in silence."""
    with pytest.raises(Refused):
        inflate_as(encoding, pack(b"{}") + b"more", LIMIT)


def test_many_small_frames_are_refused() -> None:
    """Each costs a decoder."""
    frame = zstandard.compress(b"")
    assert inflate_as("zstd", frame * ZSTD_STREAMS, LIMIT) == b""
    with pytest.raises(Refused):
        inflate_as("zstd", frame * 10_000, LIMIT)
