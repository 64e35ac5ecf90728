"""Protocol v1 in process, fed with anything: a refusal or a result for each event, never a bug."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

import brotli
import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from capture_api.events.record import RecordHead
from capture_api.protection.routing import Router, Topics
from capture_api.refusal import Refused
from capture_api.v1.answers import DETAILS, ERRORS, error_answer, results_answer
from capture_api.v1.batch import Rarities, event_uuids, parse_batch, read_rarities
from capture_api.v1.events import Request, build_records
from capture_api.v1.headers import REQUIRED, read_headers
from capture_api.wire.inflate import ENCODINGS, inflate_as

LIMIT = 1 << 20
ROUTER = Router(Topics("events", "historical", "overflow"), None)
REQUEST = Request(
    token="phc_x",
    received_at=1_767_323_045_000_000,
    request_id="0198a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
    request_time=1_767_323_045_000_000,
    ip="192.0.2.1",
    user_agent="",
    sdk="",
    library=b'"$lib":"a","$lib_version":"1"',
    rarities=Rarities(b"", False, False),
)


def serve(payload: bytes, encoding: str) -> dict[str, Any]:
    """What the endpoint does between the body and Kafka; the answer's JSON."""
    try:
        text = inflate_as(encoding, payload, LIMIT) if encoding else payload
        batch = parse_batch(text)
        uuids = event_uuids(batch.batch)
        route = ROUTER.route(7, bool(batch.historical_migration))
        request = replace(REQUEST, rarities=read_rarities(text))
        built = build_records(batch, uuids, 7, request, route)
    except Refused as refused:
        answer = error_answer(refused)
        content: dict[str, Any] = json.loads(answer.body)
        assert ERRORS[content["error"]][0] == answer.status
        return content
    assert len(built.results) == len(uuids)
    assert len(built.records) == len(built.indices)
    for topic, value, key in built.records:
        assert topic in ROUTER.topics
        assert key
        assert value.count(b"\n") == 1
        head, properties = value.split(b"\n")  # UTF-8 both, and no lone surrogates
        assert msgspec.json.decode(properties)["$lib"] == "a"
        assert len(msgspec.json.decode(head)) == len(RecordHead.__struct_fields__)
    kept = [built.results[index].result for index in built.indices if index is not None]
    assert set(kept) <= {"ok", "warning"}
    for result in built.results:
        assert result.details == "" or DETAILS[result.details][0] == result.result
    spellings = [event.uuid for event in batch.batch]
    content = json.loads(results_answer(spellings, uuids, built.results).body)
    assert content["results"].keys() == {*uuids, *spellings}
    return content


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | json_values
times = st.sampled_from(["2026-01-02T03:04:05Z", "0000-01-01T00:00:00+23:59", "x"]) | st.text()
options = st.dictionaries(
    st.sampled_from(
        ["cookieless_mode", "disable_skew_correction", "product_tour_id", "process_person_profile"]
    )
    | st.text(),
    scalars,
    max_size=4,
)
events = st.fixed_dictionaries(
    {
        "event": st.text(max_size=300),
        "uuid": st.uuids().map(str) | st.uuids().map(lambda u: u.urn.upper()),
        "distinct_id": st.text(max_size=300) | st.sampled_from(["Guest", "\0", "a"]),
        "timestamp": times,
    },
    optional={
        "options": options | json_values,
        "properties": st.dictionaries(st.text(), json_values, max_size=4) | json_values,
        "session_id": st.none() | st.text(),
        "window_id": st.none() | st.text(),
        "unknown": json_values,
    },
)
batches = st.fixed_dictionaries(
    {
        "created_at": st.just("2026-01-02T03:04:05Z") | times,
        "batch": st.lists(events, max_size=5),
    },
    optional={"historical_migration": st.booleans(), "capture_internal": st.booleans()},
)


@given(batches, st.booleans())
@settings(max_examples=300)
def test_batches_of_any_events(batch: dict[str, Any], escaped: bool) -> None:
    """Each event has its result, and each record is what the pipeline reads."""
    text = json.dumps(batch, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    answer = serve(text, "")
    if batch["batch"] and batch["created_at"].startswith("2026"):
        assert "results" in answer or answer["error"] in (
            "request_parsing_error",  # lone surrogates that are no escapes
            "duplicate_event_uuid",
        )


@given(batches, st.data())
@settings(max_examples=200)
def test_batches_that_were_damaged(batch: dict[str, Any], data: st.DataObject) -> None:
    """Bytes cut out, put in or changed, before or after compression."""
    encoding, pack = data.draw(st.sampled_from(PACKERS))
    payload = bytearray(pack(json.dumps(batch).encode()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    serve(bytes(payload), encoding)


@given(st.binary(max_size=200), st.sampled_from(["", *ENCODINGS]))
@settings(max_examples=300)
def test_any_bytes(payload: bytes, encoding: str) -> None:
    """Whatever they are said to be."""
    assert "error" in serve(payload, encoding)


PACKERS = [
    ("", bytes),
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("br", brotli.compress),
    ("zstd", zstandard.compress),
]


@pytest.mark.parametrize(("encoding", "pack"), PACKERS, ids=[name for name, _ in PACKERS])
def test_what_holds_no_event_is_told_what_it_is(encoding: str, pack: Callable[..., bytes]) -> None:
    """However it is packed."""
    for text, got in ((b"null", "null"), (b"1234", "int"), (b'""', "str"), (b"[]", "array")):
        answer = serve(pack(text), encoding)
        assert answer["error"] == "request_parsing_error"
        assert f"Expected `object`, got `{got}`" in answer["error_description"]
    answer = serve(pack(gzip.compress(b"{}")), encoding)
    assert "is not valid UTF-8 (byte 1); if it is compressed" in answer["error_description"]
    for nothing in (b"", b" \n"):
        assert serve(pack(nothing), encoding)["error"] == "empty_body"


header_values = st.binary(max_size=80).map(lambda value: value.strip())


@given(
    st.dictionaries(
        st.sampled_from(
            [name.lower().encode() for name in (*REQUIRED, "Authorization", "Content-Encoding")]
        ),
        header_values
        | st.sampled_from([b"Bearer phc_x", b"application/json", b"1", b"2026-01-02T03:04:05Z"])
        | st.uuids().map(lambda value: str(value).encode()),
    )
)
@settings(max_examples=300)
def test_any_headers(headers: dict[bytes, bytes]) -> None:
    """They are read, or refused with a status of the protocol."""
    try:
        read_headers(headers)
        status = 200
    except Refused as refused:
        status = error_answer(refused).status
    assert status in (200, 400, 401, 415)


SMALL = '{"event":"a","uuid":"%s","distinct_id":"a","timestamp":"a"}'


@pytest.mark.parametrize(
    "text",
    [
        ",".join(SMALL % UUID(int=n) for n in range(9_000)),
        ",".join(
            '{"event":"a","uuid":"a","distinct_id":"a","timestamp":"a"}' for _ in range(16_000)
        ),
        ",".join("{}" for _ in range(300_000)),
        '{"event":' + "[" * 500_000,
        SMALL.replace('"a"', '"' + "\\ud83d" * 40_000 + '"'),
    ],
)
def test_memory_is_bounded_by_the_body(text: str) -> None:
    """However small the parts of a body are, serving it takes a few times its size."""
    body = f'{{"created_at":"2026-01-02T03:04:05Z","batch":[{text}]}}'.encode()
    tracemalloc.start()
    try:
        serve(body, "")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(body)
