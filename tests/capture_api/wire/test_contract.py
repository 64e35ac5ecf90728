"""Protocol v0 as a client sees it: what is sent, the answer, and what Kafka then holds."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import httpx
import pytest

from tests.capture_rows import (
    FORM,
    NEW_PATHS,
    OLD_PATHS,
    TOKEN,
    Outcome,
    Row,
    batch,
    check,
    event,
    in_base64,
    in_form,
    in_lz64_form,
    send_all,
)

ONE = event()
TWO = batch(event(api_key=None), event(api_key=None, event="two"))
PERSON = {"$token": TOKEN, "$distinct_id": "d", "$set": {"plan": "free"}}

ROWS = [
    # encodings said in the header; precedence of hints
    Row("gzip said in the header", "/batch", TWO, gzip.compress, events=("one", "two"),
        headers={"Content-Encoding": "gzip"}),
    Row("unknown content encoding", "/e", ONE, events=("one",),
        headers={"Content-Encoding": "identity"}),
    Row("unknown compression", "/e", ONE, events=("one",), query={"compression": "zip"}),
    Row("query before header", "/e", ONE, events=("one",), query={"compression": "base64"},
        headers={"Content-Encoding": "lz64"}),
    Row("query before form", "/e", ONE, in_lz64_form, 400, query={"compression": "base64"},
        content_type=FORM),
    Row("plain JSON said to be gzip", "/batch", TWO, status=400, query={"compression": "gzip"}),
    Row("plain JSON said to be lz64", "/batch", TWO, status=400, query={"compression": "lz64"}),
    Row("broken gzip", "/e", ONE, lambda text: gzip.compress(text)[:-9], 400),
    Row("form in base64", "/e", ONE, lambda text: in_base64(in_form(text)), events=("one",),
        content_type=FORM),
    Row("base64 in a form, as beacons bring it", "/i/v0/e", TWO,
        lambda text: in_form(in_base64(text)), events=("one", "two"), content_type=FORM,
        query={"compression": "base64"}),
    Row("form whose data comes later", "/e", ONE,
        lambda text: b"x=1&" + in_form(text), events=("one",), content_type=FORM),
    Row("form with a charset", "/e", ONE, in_form, events=("one",),
        content_type=f"{FORM}; charset=UTF-8"),
    Row("JSON called a form with a charset", "/e", ONE, events=("one",),
        content_type=f"{FORM}; charset=UTF-8"),
    Row("form without data", "/e", None, lambda _: b"ver=1", 400, content_type=FORM),
    Row("gzip of base64 on an old path", "/e", ONE,
        lambda text: gzip.compress(in_base64(text)), events=("one",)),
    Row("gzip of base64 on a new path", "/batch", ONE,
        lambda text: gzip.compress(in_base64(text)), 400),
    Row("base64 of gzip", "/batch", ONE, lambda text: in_base64(gzip.compress(text)),
        events=("one",)),
    # query
    Row("everything posthog-js says", "/e", [ONE], events=("one",),
        head={"sent_at": 1714996800000000},
        query={"ip": "1", "_": "1714996800000", "ver": "1.78.5", "retry_count": "2"}),
    Row("sent_at by its name", "/e", [ONE], events=("one",), query={"sent_at": "1714996800000"},
        head={"sent_at": 1714996800000000}),
    Row("seconds are no time of sending", "/e", [ONE], events=("one",),
        query={"_": "1714996800"}, head={"sent_at": None}),
    Row("odd query values", "/e", [ONE], events=("one",),
        query={"_": "now", "beacon": "yes", "retry_count": "x"}, head={"sent_at": None}),
    Row("beacon", "/e", [ONE], status=204, events=("one",), query={"beacon": "1"}),
    Row("beacon that is refused", "/e", [], status=400, query={"beacon": "1"}),
    Row("data of the query before the body", "/e", ONE, events=("query",),
        query={"data": json.dumps(event(event="query"))}),
    # shapes
    Row("array", "/e", [ONE, event(event="two")], events=("one", "two")),
    Row("batch on /e", "/e", TWO, events=("one", "two")),
    Row("single event on /batch", "/batch", ONE, events=("one",)),
    Row("named event on /engage", "/engage", ONE, events=("one",)),
    Row("person update elsewhere", "/e", PERSON, status=400,
        text="failed to hydrate events from request"),
    Row("empty body", "/e", None, lambda _: b"", 400, text="request missing data payload"),
    Row("GET without data", "/e", None, lambda _: b"", 400, method="GET"),
    Row("no JSON", "/e", None, lambda _: b"nonsense", 400),
    Row("JSON cut short", "/batch", TWO, lambda text: text[:-1], 400),
    Row("a number", "/e", 5, status=400),
    Row("an array of numbers", "/e", [5], status=400),
    Row("not UTF-8", "/e", None, lambda _: b'{"event":"\xff"}', 400),
    Row("empty array", "/e", [], status=400, text="request holds no event"),
    Row("empty batch", "/batch", batch(), status=400, text="request holds no event"),
    Row("lone surrogates", "/e", event(event="half", distinct_id="half"),
        lambda text: text.replace(b"half", b"\\ud83d"), events=("\ufffd",),
        head={"distinct_id": "\ufffd"}),
    # the event
    Row("no name", "/e", event(event=None), status=400),
    Row("no name in a batch", "/batch", batch({"distinct_id": "d"}), status=400),
    Row("empty name", "/e", event(event=""), status=400,
        text="event submitted with an empty event name"),
    Row("name is a number", "/e", event(event=5), status=400),
    Row("no distinct_id", "/e", event(distinct_id=None), status=400,
        text="event submitted without a distinct_id"),
    Row("empty distinct_id", "/e", event(distinct_id=""), status=400),
    Row("blank distinct_id", "/e", event(distinct_id=" \t"), status=400),
    Row("empty distinct_id before that of the properties", "/e",
        event(distinct_id="", properties={"distinct_id": "p"}), status=400),
    Row("null distinct_id, one in the properties", "/e",
        {**event(properties={"distinct_id": "p"}), "distinct_id": None}, events=("one",),
        head={"distinct_id": "p"}),
    Row("distinct_id is a number", "/e", event(distinct_id=23.4), events=("one",),
        head={"distinct_id": "23.4"}),
    Row("distinct_id is an object", "/e", event(distinct_id={"string": "a", "number": 3}),
        events=("one",), head={"distinct_id": '{"number":3,"string":"a"}'}),
    Row("distinct_id with NUL", "/e", event(distinct_id="a\0"), events=("one",),
        head={"distinct_id": "a\ufffd"}),
    Row("long distinct_id", "/e", event(distinct_id="é" * 222), events=("one",),
        head={"distinct_id": "é" * 200, "flags": 2}),
    Row("empty uuid", "/e", event(uuid=""), events=("one",)),
    Row("uuid", "/e", event(uuid="0190A000-0000-7000-8000-000000000001"), events=("one",),
        head={"uuid": "0190a000-0000-7000-8000-000000000001"}),
    Row("no uuid", "/e", event(uuid="nonsense"), status=400),
    Row("one bad event among good ones", "/batch",
        batch(event(), event(distinct_id=None), event()), status=400, text="event 1"),
    Row("properties are an array", "/e", event(properties=[1]), status=400),
    Row("unreadable time", "/e", event(timestamp="one day"), events=("one",)),
    Row("historical batch", "/batch", {**TWO, "historical_migration": True}),
    Row("cookieless", "/e", event(distinct_id="$posthog_cookieless",
        properties={"$cookieless_mode": True}), events=("one",), head={"flags": 8}),
    Row("cookieless is not a boolean", "/e", event(properties={"$cookieless_mode": "yes"}),
        status=400),
    Row("cookieless is null", "/e", event(properties={"$cookieless_mode": None}), status=400),
    Row("sent by the operator's own service", "/e", event(properties={"capture_internal": True}),
        events=("one",), head={"ip": "127.0.0.1"}),
    Row("only performance events", "/e", [event(event="$performance_event")] * 2),
    Row("only performance events, no token", "/e", [{"event": "$performance_event"}]),
    Row("performance events among others", "/batch",
        batch(event(event="$performance_event"), event()), events=("one",)),
    # the token
    Row("token", "/e", {"token": TOKEN, "event": "one", "distinct_id": "d"}, events=("one",)),
    Row("$token", "/e", {"$token": TOKEN, "event": "one", "distinct_id": "d"}, events=("one",)),
    Row("token in the properties", "/e",
        event(api_key=None, properties={"token": TOKEN}), events=("one",)),
    Row("blanks around the token", "/e", event(api_key=f" {TOKEN}\n"), events=("one",)),
    Row("the batch's token before those of its events", "/batch",
        batch(event(api_key="other")), events=("one",)),
    Row("array with one token", "/e", [event(), event(api_key=None)], events=("one", "one")),
    Row("array with two tokens", "/e", [event(), event(api_key="other")], status=401,
        text="inconsistent api_key values"),
    Row("no token", "/e", event(api_key=None), status=401,
        text="event submitted without an api_key"),
    Row("empty token", "/batch", batch(event(), api_key=""), status=401,
        text="API key is not valid: empty"),
    Row("long token", "/e", event(api_key="x" * 65), status=401, text="too_long"),
    Row("token not in ASCII", "/e", event(api_key="🦀"), status=401, text="not_ascii"),
    Row("personal key", "/e", event(api_key="phx_hello"), status=401, text="personal_api_key"),
    Row("token with NUL", "/e", event(api_key="a\0b"), status=401, text="null_byte"),
    Row("token of no project", "/e", event(api_key="phc_nobody"), status=401),
    # methods and sizes
    Row("PUT", "/e", ONE, status=405, method="PUT"),
    Row("OPTIONS", "/batch", None, lambda _: b"", method="OPTIONS", text='{"status":"Ok"}'),
    Row("an event of 4 MiB alone", "/e", event(properties={"big": "a" * (4 << 20)}), status=413,
        text="maximum event size exceeded"),
    Row("gzip bomb", "/batch", None, lambda _: gzip.compress(b" " * (101 << 20), 1), 413),
    *(Row(f"{path} body over the cap", path, None, lambda _: b" " * ((20 << 20) + 1), 413)
      for path in (*OLD_PATHS, *NEW_PATHS, "/engage")),
]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(capture: Any) -> dict[str, Outcome]:
    """What became of every row."""
    return send_all(capture, ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, outcomes: dict[str, Outcome]) -> None:
    """The answer is as it should be, and so is what is kept."""
    check(row, outcomes[row.id])


def test_rows_have_names_of_their_own() -> None:
    """No row hides another."""
    assert len({row.id for row in ROWS}) == len(ROWS)


def test_connection_outlives_a_body_over_the_cap(capture: Any) -> None:
    """The 413 arrives, instead of a reset, and the next request goes over the same connection."""
    with httpx.Client(base_url=capture.url, limits=httpx.Limits(max_connections=1)) as client:
        body = b" " * (30 << 20)
        assert client.post("/batch", content=body).status_code == 413
        assert client.post("/batch", json=capture.batch(event())).status_code == 200


def test_one_large_event_does_not_cost_the_others(capture: Any, until: Any) -> None:
    """The answer names it by place and uuid; the others and a trace of it are in Kafka."""
    uuid = "0190a000-0000-7000-8000-00000000000a"
    large = event(event="large", uuid=uuid, properties={"big": "a" * 1_000_000})
    response = capture.client.post("/batch", json=capture.batch(event(), large, event(event="z")))
    assert response.status_code == 200
    [told] = response.json()["rejected"]
    assert (told["index"], told["uuid"], told["code"]) == (1, uuid, "too_large")
    assert "maximum event size exceeded" in told["detail"]
    values = [record.value for record in capture.records_of(response)]
    assert sorted(value["event"] for value in values) == ["large", "one", "z"]
    [evidence] = [value for value in values if "refused" in value]
    assert (evidence["refused"], evidence["uuid"]) == ("too_large", uuid)

    alone = capture.client.post("/e", json={**large, "api_key": capture.token})
    assert alone.status_code == 413
    until(lambda: len(capture.records_of(alone)) == 1, "the trace of a lone large event arrives")


def test_both_attempts_of_an_event_have_one_time(capture: Any) -> None:
    """A browser that sends again says the same offset and a new time of sending."""
    made_ms = int(time.time() * 1000) - 5_000
    digits = f"{made_ms:012x}"
    body = event(
        event="retried", offset=5_000, uuid=f"{digits[:8]}-{digits[8:]}-7000-8000-00000000000a",
        api_key=capture.token,
    )  # fmt: skip
    times = []
    for seconds in (0, 60):
        sent_ms = made_ms + 5_000 + seconds * 1000
        response = capture.client.post("/e/", params={"_": str(sent_ms)}, json=body)
        [record] = capture.records_of(response)
        times.append(record.value["timestamp"] - record.value["received_at"] + seconds * 1_000_000)
    assert times == [-5_000_000, -5_000_000]
