"""What the edge takes, the batch keeps: no event with a 200 becomes a dead letter, or another one.

The edge is that of `test_any_bytes.py`; its records go to the pipeline's own reading and judging.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.pipeline.enrich import enrich
from assets.pipeline.validate import judge
from capture_api.ingest import INGEST_PATHS
from tests.capture_api.wire.test_any_bytes import TOKEN, Edge
from tests.capture_rows import in_base64


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge that the module's tests share."""
    made = Edge(tmp_path_factory.mktemp("edge"))
    yield made
    made.runner.close()


ODD_TEXTS = [
    "", " ", "\0", "\t", "\n", "\ud83d", "\ude00x", "😀", "\u2028", "\ufeff", "\\", '"', "\x7f",
    "null", "NaN", "\\N", "{}", "0", "$performance_event", "$identify", "a" * 201, "é" * 300,
    "'; --", "\ud83d\ud83d\ude00",
]  # fmt: skip
ODD_NUMBERS = [
    0, -0.0, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 5e-324, 1.7976931348623157e308,
]  # fmt: skip
ODD_TIMES = [
    "2026-03-04T12:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59+23:59", "2026-02-30",
    "now", "", "1767323045",
    "Thu, 01 Jan 1970 00:00:00 GMT", "2026-03-04T12:00:60Z", "-0001-01-01T00:00:00Z", "2026-W10-3",
]  # fmt: skip
texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
numbers = (
    st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
names = (
    st.sampled_from(
        [
            "$set",
            "$lib",
            "$current_url",
            "utm_source",
            "$ip",
            "token",
            "distinct_id",
            "$ignore_sent_at",
        ]
    )
    | texts
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=5) | st.just([])
events = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["tick", "$pageview"]) | texts,
        "distinct_id": st.just("d") | texts | numbers,
        "api_key": st.just(TOKEN),
    },
    optional={
        "uuid": st.none()
        | st.uuids().map(str)
        | st.just(str(UUID(int=0)))
        | st.uuids().map(lambda of: of.urn),
        "timestamp": st.none() | st.sampled_from(ODD_TIMES) | numbers,
        "offset": st.none() | numbers,
        "properties": objects,
        "$set": objects,
        "$set_once": objects,
        "unknown": values,
    },
)
PACKERS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, in_base64]


def kept_as(text: str) -> str:
    """The text as UTF-8 can hold it, without what no column holds."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return re.sub("[\ud800-\udfff]", "\ufffd", whole)


@settings(max_examples=400)
@given(
    st.lists(events, min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from(PACKERS),
    st.sampled_from(INGEST_PATHS),
)
def test_what_is_taken_is_kept(
    edge: Edge,
    sent: list[dict[str, Any]],
    batched: bool,
    escaped: bool,
    pack: Callable[[bytes], bytes],
    path: str,
) -> None:
    """Each event with its name and its properties, however odd; or the request is refused."""
    text = json.dumps({"api_key": TOKEN, "batch": sent} if batched else sent, ensure_ascii=escaped)
    body = text.encode("utf-8", "surrogatepass")
    status, answer, records = edge.answer(pack(body), path)
    assert status in (200, 400), answer
    if status == 400:
        assert json.loads(answer)["detail"]
        return
    wanted = [event for event in sent if event["event"] != "$performance_event"]
    judged = judge(pa.array([value for _, value, _ in records], pa.binary()))
    assert judged.rejections == {}
    rows = enrich(judged.columns).to_pylist()
    assert [row["event"] for row in rows] == [kept_as(event["event"]) for event in wanted]
    for row, event in zip(rows, wanted, strict=True):
        if "$set" not in event and "$set_once" not in event:
            given_ = json.loads(
                kept_as(json.dumps(event.get("properties") or {}, ensure_ascii=False))
            )
            assert json.loads(row["properties"]) == given_


def test_most_requests_are_taken(edge: Edge) -> None:
    """The test above does not pass because everything odd is refused."""
    for odd in ODD_TEXTS:
        event = {"event": odd.strip() or "e", "distinct_id": f"d{odd}", "api_key": TOKEN}
        body = json.dumps([{**event, "properties": {odd: [odd, *ODD_NUMBERS]}}]).encode()
        status, answer, records = edge.answer(body, "/e")
        assert (status, len(records)) == (200, odd != "$performance_event"), answer
