"""lz64 is undone as lz-string made it, or refused, within bounds of time and memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capture_api.refusal import Refused
from capture_api.wire.lz64 import INPUT_BYTES, OUTPUT_BYTES, decode_lz64
from tests.lz_string import compress_to_base64, growing

LIMIT = 1 << 20

# Text and what lz-string 1.5.0 makes of it.
VECTORS = [
    ("", "Q==="),
    ("a", "IZA="),
    ("a" * 24, "IY18aQ=="),
    ("ab" * 40, "IYI17SOrZ+6IcxQ="),
    ("é", "JdA="),
    ("中文", "rRynDTI="),
    ("😀😀", "rwbgA91A"),
    ("\0ÿĀ\uffff", "AAf8AICP//Q="),
    (
        '{"event":"lz","distinct_id":"d","token":"t"}',
        "N4IgpgbmB2AuIC4QBsBeIA0IAmBLAzrLtAMawD6u2iOmIsA9gNYw3wC+QA==",
    ),
    (
        '[{"event":"ÿ😀","distinct_id":"d","properties":{"a":[1,1,1,1,1,1]}}]',
        "NobwRApgbhB2AuYBcYD/heDcAB7YA0YAmAlgM7yGwDG8A+ofsgbmAA4BOA9sxK2RMcuACGyYAEYc4yRIkBdAL5yZQA==",
    ),
]


@pytest.mark.parametrize(("text", "packed"), VECTORS)
def test_what_lz_string_makes(text: str, packed: str) -> None:
    """Texts packed by lz-string itself are unpacked; the tests' own packer makes the same."""
    assert decode_lz64(packed.encode(), LIMIT) == text.encode()
    assert compress_to_base64(text) == packed


@given(
    st.one_of(
        st.text(max_size=300),
        st.text("ab", max_size=2000),
        st.lists(st.sampled_from(["😀", "é", '{"a":', "}", "中"]), max_size=300).map("".join),
        st.tuples(st.text(max_size=9), st.integers(1, 500)).map(lambda pair: pair[0] * pair[1]),
    )
)
def test_every_text_comes_back(text: str) -> None:
    """Whatever was packed is unpacked, with or without its padding."""
    packed = compress_to_base64(text).encode()
    assert decode_lz64(packed, LIMIT) == text.encode()
    assert decode_lz64(packed.rstrip(b"="), LIMIT) == text.encode()


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "\udc00\ud83d"])
def test_halves_of_characters_are_refused(text: str) -> None:
    """A lone surrogate is no text that anything further down could take."""
    with pytest.raises(Refused) as caught:
        decode_lz64(compress_to_base64(text).encode(), LIMIT)
    assert (caught.value.status, caught.value.code) == (400, "bad_lz64")


@pytest.mark.parametrize(
    "packed",
    [b"=", b"!", b"IZA=IZA=", b"IZ A=", b"A", b"I", b"////", b"AAAA", b"{}", b"\xff\xfe\xfd\xfc"],
)  # fmt: skip
def test_garbage_is_refused(packed: bytes) -> None:
    """Neither base64 nor a stream that ends: 400."""
    with pytest.raises(Refused) as caught:
        decode_lz64(packed, LIMIT)
    assert (caught.value.status, caught.value.code) == (400, "bad_lz64")


def test_other_base64_is_told_so() -> None:
    """Base64 of JSON begins with what ends lz64; it is not taken for an empty text."""
    for other in ("eyJhIjoxfQ==", "W3siZXZlbnQiOiJlIn1d", "H4sIAAAAAAAAA4uOBQApu0wNAgAAAA=="):
        with pytest.raises(Refused) as caught:
            decode_lz64(other.encode(), LIMIT)
        assert caught.value.code == "bad_lz64"


def test_a_stream_cut_short_is_refused() -> None:
    """What was cut off is not made up for."""
    packed = compress_to_base64(json.dumps(list(range(40)))).rstrip("=").encode()
    for end in range(1, len(packed)):
        with pytest.raises(Refused) as caught:
            decode_lz64(packed[:end], LIMIT)
        assert caught.value.status == 400


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", max_size=400))
@example("IZA")
def test_any_digits_are_unpacked_or_refused(packed: str) -> None:
    """Random codes lead to a text within the limit or to a refusal."""
    status = 200
    try:
        assert len(decode_lz64(packed.encode(), 1000)) <= 1000
    except Refused as refused:
        status = refused.status
    assert status in (200, 400, 413)


def test_exactly_the_limit_is_taken() -> None:
    """The limit itself is allowed, in bytes of UTF-8."""
    assert len(decode_lz64(compress_to_base64("é" * 500).encode(), 1000)) == 1000
    with pytest.raises(Refused) as caught:
        decode_lz64(compress_to_base64("é" * 501).encode(), 1000)
    assert (caught.value.status, caught.value.code) == (413, "too_large")


@pytest.mark.parametrize("limit", [100_000, OUTPUT_BYTES * 8])
def test_bomb_costs_no_more_than_the_limit(limit: int) -> None:
    """A few kilobytes that stand for 80 MB are given up at the limit, or at the decoder's own."""
    packed = growing(9000)
    assert len(packed) < 20_000
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as caught:
            decode_lz64(packed, limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 3 * min(limit, OUTPUT_BYTES) + (1 << 20)


def test_too_long_a_text_is_refused_unread() -> None:
    """Unpacking takes a while, so there is a longest text."""
    with pytest.raises(Refused) as caught:
        decode_lz64(b"A" * (INPUT_BYTES + 1), LIMIT)
    assert caught.value.status == 413
