"""Whatever bytes come, in whatever wrapping: an answer that blames them, in bounded memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture_api.events.records import Record
from capture_api.ingest import INGEST_PATHS, Ingest
from capture_api.kafka.producer import RecordProducer
from capture_api.metrics import Metrics
from capture_api.projects import Projects
from capture_api.protection.guard import Guard
from capture_api.refusal import bad_token
from orchestration.ledger.access import Access
from orchestration.settings import Settings
from tests.capture_rows import FORM, in_base64, in_base64_form, in_form, in_lz64_form
from tests.lz_string import compress_to_base64, growing
from tests.records import read_value

TOKEN = "phc_known"
LIMIT = 1 << 20


class Collector:
    """Stands for the producer: keeps the last request's records, and acknowledges them."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def check(self) -> None:
        """Kafka is always there."""

    def send(self, records: list[Record]) -> asyncio.Future[None]:
        """Take the records."""
        self.records = records
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged


class Edge:
    """The capture API's way of a request, without a network and without Kafka."""

    def __init__(self, home: Path) -> None:
        conf = Settings(  # type: ignore[call-arg]
            home=home,
            capture_max_body_bytes=LIMIT,
            capture_max_decompressed_bytes=LIMIT,
        )
        projects = Projects(conf)
        projects.access = Access({TOKEN: 1}, {}, (), 0)
        projects.find = self._find  # type: ignore[method-assign]
        self.collector = Collector()
        producer = cast(RecordProducer, self.collector)
        self.ingest = Ingest(conf, projects, producer, Guard(conf, projects), Metrics())
        self.runner = asyncio.Runner()

    async def _find(self, token: str) -> int:
        raise bad_token("no project has this token")

    def answer(
        self,
        body: bytes,
        path: str = "/e/",
        query: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        method: str = "POST",
    ) -> tuple[int, bytes, list[Record]]:
        """Status and body of the answer, and the records."""
        self.collector.records = []
        return self.runner.run(self._answer(body, path, query, headers, method))

    async def _answer(
        self, body: bytes, path: str, query: bytes, headers: Any, method: str
    ) -> tuple[int, bytes, list[Record]]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
        }
        await self.ingest(scope, receive, send)
        return sent[0]["status"], sent[1]["body"], self.collector.records


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge that the module's tests share."""
    made = Edge(tmp_path_factory.mktemp("edge"))
    yield made
    made.runner.close()


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "base64": in_base64,
    "form": in_form,
    "base64 in a form": in_base64_form,
    "lz64": lambda text: compress_to_base64(text.decode("latin-1")).encode(),
    "lz64 in a form": lambda text: in_lz64_form(text.decode("latin-1").encode()),
}
GOOD = {"event": "e", "distinct_id": "d", "api_key": TOKEN, "properties": {"a": [1, "é😀"]}}
BODIES = [
    GOOD,
    [GOOD, {**GOOD, "offset": 5, "uuid": "0190a000-0000-7000-8000-000000000001"}],
    {"api_key": TOKEN, "batch": [GOOD], "sent_at": "2026-03-04T12:00:00Z"},
    {**GOOD, "$set": {"a": 1}, "properties": {"$set": {"b": 2}, "$cookieless_mode": True}},
    {"$token": TOKEN, "$distinct_id": 5, "$set_once": {}, "timestamp": "2026-03-04"},
]
names = st.sampled_from(
    ["event", "distinct_id", "$distinct_id", "uuid", "properties", "timestamp", "offset", "$set",
     "$set_once", "token", "$token", "api_key", "batch", "sent_at", "historical_migration",
     "$cookieless_mode", "$ignore_sent_at", "capture_internal", "x"]
)  # fmt: skip
json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from([TOKEN, "2026-03-04T12:00:00Z", "$performance_event", "\ud83d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=20,
).map(lambda value: json.dumps(value).encode())  # fmt: skip
good_texts = st.sampled_from([json.dumps(body).encode() for body in BODIES])


@st.composite
def damaged(draw: st.DrawFn, texts: st.SearchStrategy[bytes]) -> bytes:
    """A text with stretches of it replaced, doubled or cut out."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 8)))
        text = (
            text[:start] + draw(st.binary(max_size=8) | st.just(text[start:end] * 2)) + text[end:]
        )
    return text


@st.composite
def wrapped(draw: st.DrawFn) -> bytes:
    """Some text in some wrappings, damaged here and there."""
    text = draw(st.binary(max_size=200) | json_texts | damaged(good_texts) | good_texts)
    for name in draw(st.lists(st.sampled_from(sorted(WRAPPINGS)), max_size=3)):
        text = WRAPPINGS[name](text)
    return draw(damaged(st.just(text)) | st.just(text))


queries = st.dictionaries(
    st.sampled_from(["compression", "_", "sent_at", "beacon", "retry_count", "ver", "ip"]),
    st.sampled_from(["gzip", "lz64", "base64", "1", "1714996800000", "-1", "x", ""])
    | st.text(max_size=5),
    max_size=3,
).map(lambda given: urlencode(given, errors="replace").encode()) | st.binary(max_size=30)
headers = st.lists(
    st.sampled_from(
        [
            (b"content-type", FORM.encode()),
            (b"content-type", b"application/json"),
            (b"content-encoding", b"gzip"),
            (b"content-encoding", b"lz64"),
            (b"content-encoding", b"\xff"),
            (b"user-agent", b"posthog-js/1.0 \xff"),
            (b"origin", b"https://x"),
        ]
    ),
    max_size=3,
).map(tuple)


@settings(max_examples=400)
@given(
    wrapped(),
    st.sampled_from(INGEST_PATHS),
    queries,
    headers,
    st.sampled_from(["POST", "GET"]),
    st.booleans(),
)
def test_any_request_is_answered(
    edge: Edge,
    body: bytes,
    path: str,
    query: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    method: str,
    in_query: bool,
) -> None:
    """It is taken or blamed, never our fault; what is taken can be read back."""
    if in_query:
        query += b"&" + urlencode({"data": body}).encode()
        body = b""
    status, answer, records = edge.answer(body, path, query, headers, method)
    assert status in (200, 204, 400, 401, 413), answer
    if status >= 400:
        assert json.loads(answer).keys() == {"code", "detail"}
    for _, value, key in records:
        assert read_value(value)["project_id"] == 1
        assert key is not None


def test_a_good_request_is_taken(edge: Edge) -> None:
    """The edge of these tests takes what is good: they do not pass because it refuses all."""
    for body in BODIES:
        status, _, records = edge.answer(json.dumps(body).encode(), "/engage")
        assert (status, len(records)) == (200, len(body) if isinstance(body, list) else 1)


GOT = "failed to hydrate events from request: Expected `object`, got"
NOTHING = "request missing data payload: "
REASONS = {
    b"null": ("bad_shape", f"{GOT} `null`"),
    b"true": ("bad_shape", f"{GOT} `bool`"),
    b"1234": ("bad_shape", f"{GOT} `int`"),
    b"-1.5e3": ("bad_shape", f"{GOT} `float`"),
    b'"null"': ("bad_shape", f"{GOT} `str`"),
    b"[null]": ("bad_shape", f"{GOT} `null` - at `$[0]`"),
    b"[]": ("no_events", "request holds no event"),
    b'{"batch": []}': ("no_events", "request holds no event"),
    b"None": ("bad_json", "failed to parse the request: JSON is malformed"),
    b" \n": ("empty_payload", NOTHING),
    b"": ("empty_payload", NOTHING),
}


@pytest.mark.parametrize("path", ["/batch/", "/e/"])
@pytest.mark.parametrize("text", REASONS, ids=repr)
def test_what_holds_no_event_is_told_what_it_is(edge: Edge, text: bytes, path: str) -> None:
    """However it is wrapped: four letters are not taken for base64 of something odd."""
    wrapped = {"plain": text, "gzip": gzip.compress(text), "base64": in_base64(text)}
    for how, body in wrapped.items():
        status, answer, records = edge.answer(body, path)
        told = json.loads(answer)
        code, reason = REASONS[text]
        assert (status, told["code"], records) == (400, code, []), how
        assert told["detail"].startswith(reason), how


BOMB = gzip.compress(b" " * (20 * LIMIT), 1)
AS_FORM = ((b"content-type", FORM.encode()),)


@pytest.mark.parametrize(
    ("body", "query", "headers"),
    [
        (BOMB, b"", ()),
        (in_base64(BOMB), b"", ()),
        (gzip.compress(BOMB * 100), b"", ()),
        (in_base64_form(BOMB), b"compression=gzip", AS_FORM),
        (urlencode({"data": growing(7000)}).encode(), b"compression=lz64", AS_FORM),
    ],
    ids=["gzip", "base64 of gzip", "gzip of gzip", "gzip in a form", "lz64"],
)  # fmt: skip
def test_bombs_cost_no_more_than_the_limit(
    edge: Edge, body: bytes, query: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    """Twenty times the limit in a small body is given up at the limit."""
    tracemalloc.start()
    try:
        status, _, records = edge.answer(body, "/e", query, headers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (status in (400, 413), records) == (True, [])
    assert peak < 4 * LIMIT + 3 * len(body)
