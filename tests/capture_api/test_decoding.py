"""Whatever a client wraps its JSON in is undone, within bounds, or refused in words."""

from __future__ import annotations

import base64
import gzip
import json
import re
import tracemalloc
import zlib
from contextlib import suppress
from urllib.parse import quote, unquote_to_bytes, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture_api.refusal import Refused
from capture_api.wire import decoding
from capture_api.wire.decoding import GZIP_MEMBERS, decode_payload, inflate
from capture_api.wire.depth import DEPTH_LIMIT, too_deep
from capture_api.wire.query import Query, parse_query
from capture_api.wire.surrogates import MAX_REPLACED, replace_lone_surrogates

JSON = '{"event":"é","distinct_id":"d"}'.encode()
LIMIT = 10_000
FORM = {b"content-type": b"application/x-www-form-urlencoded"}


def decode(
    body: bytes, query: str = "", path: str = "/batch", headers: dict[bytes, bytes] | None = None
) -> bytes:
    """The payload decoded as a request with these parts."""
    return decode_payload(
        body, path=path, query=parse_query(query.encode()), headers=headers or {}, limit=LIMIT
    )


@pytest.mark.parametrize(
    ("body", "query", "path", "headers"),
    [
        pytest.param(JSON, "", "/batch", {}, id="plain"),
        pytest.param(gzip.compress(JSON), "compression=gzip", "/e", {}, id="gzip, query"),
        pytest.param(gzip.compress(JSON), "compression=GZIP-js", "/e", {}, id="gzip-js"),
        pytest.param(gzip.compress(JSON), "", "/e", {b"content-encoding": b"gzip"}, id="header"),
        pytest.param(gzip.compress(JSON), "", "/e", {b"content-type": b"text/plain"}, id="sniffed"),
        pytest.param(gzip.compress(JSON), "compression=what", "/e", {}, id="unknown hint"),
        pytest.param(
            gzip.compress(JSON[:9]) + gzip.compress(JSON[9:]), "", "/e", {}, id="two gzip members"
        ),
        pytest.param(gzip.compress(JSON) + b"\0\0", "", "/e", {}, id="gzip with padding"),
        pytest.param(base64.b64encode(JSON), "", "/e", {}, id="base64 without hint"),
        pytest.param(base64.b64encode(JSON), "compression=base64", "/e", {}, id="base64"),
        pytest.param(base64.b64encode(gzip.compress(JSON)), "", "/e", {}, id="base64 of gzip"),
        pytest.param(gzip.compress(base64.b64encode(JSON)), "", "/e", {}, id="gzip of base64"),
        pytest.param(urlencode({"data": JSON}).encode(), "", "/e", FORM, id="form"),
        pytest.param(
            urlencode({"data": base64.b64encode(JSON), "compression": "base64"}).encode(),
            "", "/e", FORM, id="form of base64",
        ),
        pytest.param(
            urlencode({"data": JSON}).encode(), "", "/e",
            {b"content-type": b"application/x-www-form-urlencoded; charset=UTF-8"},
            id="form with a charset",
        ),
        pytest.param(b"", urlencode({"data": JSON}), "/e", {}, id="data in query"),
        pytest.param(b"ignored", urlencode({"data": JSON}), "/e", {}, id="query before body"),
    ],
)  # fmt: skip
def test_wrappings_are_undone(
    body: bytes, query: str, path: str, headers: dict[bytes, bytes]
) -> None:
    """Each wrapping that clients use gives back the JSON text."""
    assert decode(body, query, path, headers) == JSON


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        (b"", "", 400, "empty_payload"),
        (b"", "data=", 400, "empty_payload"),
        (gzip.compress(JSON, mtime=0)[:-9], "", 400, "bad_gzip"),
        (gzip.compress(JSON, mtime=0)[:-1], "", 400, "bad_gzip"),
        (gzip.compress(JSON, mtime=0)[:-8] + b"\0" * 8, "", 400, "bad_gzip"),
        (b"\x1f\x8b\x08 not gzip at all", "", 400, "bad_gzip"),
        (gzip.compress(b"") * GZIP_MEMBERS + gzip.compress(JSON), "", 400, "bad_gzip"),
        (JSON, "compression=gzip", 400, "bad_gzip"),
        (zlib.compress(JSON), "compression=gzip", 400, "bad_gzip"),
        (JSON, "compression=lz64", 400, "bad_lz64"),
        (b'{"event":"\xff"}', "", 400, "not_utf8"),
        (b'{"event":"a","properties":{"x":"\xed\xa0\x80"}}', "", 400, "not_utf8"),
        (base64.b64encode('{"event":"é"}'.encode("latin-1") * 3), "", 400, "not_utf8"),
        (base64.b64encode(JSON.decode().encode("utf-16")), "", 400, "not_utf8"),
        (gzip.compress(b" " * (LIMIT + 1), mtime=0), "", 413, "too_large"),
        (gzip.compress(b" " * LIMIT, mtime=0) + gzip.compress(b" ", mtime=0), "", 413, "too_large"),
    ],
)
def test_what_cannot_be_undone_is_refused(body: bytes, query: str, status: int, code: str) -> None:
    """Damaged, unsupported, oversized and non-UTF-8 bodies are refused, each for its reason."""
    with pytest.raises(Refused) as caught:
        decode(body, query)
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize("path", ["/e", "/batch"])
@pytest.mark.parametrize("word", [b"null", b"true", b"1234", b"1e10", b"None", b"Infinity"])
def test_a_word_is_no_base64(word: bytes, path: str) -> None:
    """What has four letters stays as it is unless base64 of it is text, however it is packed."""
    packed = {
        "plain": (word, {}),
        "gzip": (gzip.compress(word), {}),
        "form": (b"data=" + word, FORM),
        "gzip in base64": (base64.b64encode(gzip.compress(word)), {}),
        "base64": (base64.b64encode(word), {}),
    }
    for how, (body, headers) in packed.items():
        assert decode(body, "", path, headers) == word, how


def test_content_of_exactly_the_limit_is_taken() -> None:
    """The limit itself is allowed."""
    assert len(inflate(gzip.compress(b" " * LIMIT), LIMIT)) == LIMIT


@given(st.binary(max_size=200), st.sampled_from(["", "compression=gzip", "compression=b64"]))
def test_any_bytes_are_decoded_or_refused(body: bytes, query: str) -> None:
    """No body makes decoding fail otherwise than by refusing; what comes out is UTF-8."""
    for path in ("/e", "/batch"):
        for headers in ({}, FORM):
            status = 200
            try:
                decode(body, query, path, headers).decode()
            except Refused as refused:
                status = refused.status
            assert status in (200, 400, 413)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", Query()),
        ("compression=gzip-js&_=1714996800000&ver=1.2&ip=1", Query("gzip", 1714996800000000)),
        ("sent_at=1714996800000", Query(sent_at=1714996800000000)),
        ("beacon=1", Query(beacon=True)),
        ("beacon=yes&_=soon&retry_count=x", Query()),
        ("compression=%FF%00", Query()),
        ("data=%7B%7D", Query(data="{}")),
    ],
)
def test_query_parameters(query: str, expected: Query) -> None:
    """Known parameters are read, odd values are passed over."""
    assert parse_query(query.encode()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\uD83D\uDE00"', rb'"\uD83D\uDE00"'),
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\ud83d\n\ude00"', rb'"\ufffd\n\ufffd"'),
        (rb'"\\ud83d"', rb'"\\ud83d"'),
        (rb'"\\\ud83d"', rb'"\\\ufffd"'),
        (rb'"\u00e9"', rb'"\u00e9"'),
        (rb'"\\\ud83d\ude00\\"', rb'"\\\ud83d\ude00\\"'),
        (rb'"\ud83d\\ude00"', rb'"\ufffd\\ude00"'),
        (b'"\0\\ud83d"', b'"\0\\ud83d"'),
    ],
)
def test_lone_surrogates_are_replaced(text: bytes, expected: bytes) -> None:
    """Only halves without their other half change, and only into U+FFFD."""
    assert replace_lone_surrogates(text) == expected


@given(st.lists(st.sampled_from([rb"\\", rb"\n", rb"\ud83d", rb"\uDE00", b"ud83d", b"x"])))
def test_replaced_text_is_what_a_reader_makes_of_it(parts: list[bytes]) -> None:
    """Any mix of escapes reads as before, but for its lone halves."""
    text = b'"' + b"".join(parts) + b'"'
    read = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(text))
    assert json.loads(replace_lone_surrogates(text)) == read


def test_replacing_is_bounded() -> None:
    """Beyond so many lone halves the text stays invalid: no body is worth more work."""
    replaced = replace_lone_surrogates(rb"\ud83d" * (MAX_REPLACED + 5))
    assert (replaced.count(rb"\ufffd"), replaced.count(rb"\ud83d")) == (MAX_REPLACED, 5)


def nested(levels: int) -> bytes:
    """Arrays in arrays."""
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (nested(DEPTH_LIMIT), False),
        (nested(DEPTH_LIMIT + 1), True),
        (b'{"a":' * (DEPTH_LIMIT + 1) + b"1" + b"}" * (DEPTH_LIMIT + 1), True),
        (b"[" + b"{}," * 500 + b"{}]", False),
        (b'["' + b"[" * 500 + b'"]', False),
        (b'["\\"' + b"[" * 500 + b'\\\\"]', False),
        (nested(200_000), True),
    ],
)
def test_depth_is_told(text: bytes, deep: bool) -> None:
    """Brackets count where they nest, not where they stand side by side or inside strings."""
    assert too_deep(text) is deep


@given(st.binary(max_size=300), st.integers(3, 9))
def test_fields_of_forms_are_unquoted_as_by_a_reader(data: bytes, step: int) -> None:
    """In pieces, wherever they end: escapes, characters and what is neither come out the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_UNQUOTED_AT_ONCE", step)
        for value in (data, quote(data).encode(), data.replace(b"\0", b"%")):
            whole = unquote_to_bytes(value.replace(b"+", b" ")).decode(errors="replace")
            assert decoding._unquoted(value).decode() == whole


@pytest.mark.parametrize(
    "field", [b"%41" * 700_000, b"a%41" * 500_000, b"{" + b"+%C3%A9" * 300_000]
)
def test_escapes_of_a_form_take_little_memory(field: bytes) -> None:
    """A small multiple of the body, whatever it is made of: it is past what requests may hold."""
    body = b"data=" + field
    tracemalloc.start()
    try:
        with suppress(Refused):
            decode(body, headers=FORM)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)
