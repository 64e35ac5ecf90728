"""A 200 means that Kafka has every event of the request, exactly as it was sent."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest


def test_accepted_event_is_in_the_topic_with_its_bytes(capture: Any) -> None:
    """The properties arrive byte for byte, and the head says who sent what, when."""
    properties = '{ "b":1.0,"a" : "\\u00e9é\\n",   "n":1e2, "deep":[{"x":[]}]}'
    uuid = "018F3B5C-0000-7000-8000-0123456789AB"
    body = (
        f'{{"api_key":"{capture.token}","event":"bought","distinct_id":"u 1","uuid":"{uuid}",'
        f'"properties":{properties}}}'
    )
    response = capture.client.post(
        "/i/v0/e", content=body.encode(), headers={"User-Agent": "posthog-python/7.1"}
    )

    assert (response.status_code, response.json()) == (200, {"status": "Ok"})
    [record] = capture.records_of(response)
    assert record.raw.split(b"\n", 1)[1] == properties.encode()
    assert record.key == f"{capture.token}:u 1"
    assert record.headers == [("tidemark-record", b"2")]
    value = record.value
    assert value["uuid"] == uuid.lower()
    assert value["project_id"] == capture.project.project_id
    assert (value["event"], value["distinct_id"]) == ("bought", "u 1")
    assert value["ip"] == "127.0.0.1"
    assert value["user_agent"] == value["sdk"] == "posthog-python/7.1"
    assert value["timestamp"] == value["received_at"]
    assert value["flags"] == 0


@pytest.mark.parametrize("path", ["/batch", "/e", "/capture", "/track", "/i/v0/e", "/engage"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_capture_path_takes_every_shape(capture: Any, path: str, slash: str) -> None:
    """A single event, an array and a batch are taken in on each path, with and without slash."""
    event = {"event": "e", "distinct_id": "d"}
    shapes: list[Any] = [
        {**event, "api_key": capture.token},
        [{**event, "properties": {"token": capture.token}}],
        capture.batch(event, event),
    ]
    for shape, count in zip(shapes, (1, 1, 2), strict=True):
        response = capture.client.post(path + slash, json=shape)
        assert response.status_code == 200, response.text
        assert len(capture.records_of(response)) == count


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {"Content-Type": "text/plain"}])
def test_gzip_is_understood_with_and_without_a_hint(capture: Any, headers: dict[str, str]) -> None:
    """Browsers send gzip as text/plain and say nothing about it."""
    body = gzip.compress(json.dumps(capture.batch({"event": "zip", "distinct_id": "d"})).encode())
    response = capture.client.post("/e/", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert [record.value["event"] for record in capture.records_of(response)] == ["zip"]


def test_batch_keeps_the_order_of_one_persons_events(capture: Any) -> None:
    """All events of one person go to one partition, in the order of the batch."""
    events = [{"event": f"e{number}", "distinct_id": f"d{number % 3}"} for number in range(3_000)]
    response = capture.client.post("/batch", json=capture.batch(*events))
    assert response.status_code == 200
    records = capture.records_of(response)
    for person in ("d0", "d1", "d2"):
        sent = [event["event"] for event in events if event["distinct_id"] == person]
        stored = [r.value["event"] for r in records if r.value["distinct_id"] == person]
        assert stored == sent
    assert len({record.value["uuid"] for record in records}) == 3_000


def test_one_invalid_event_refuses_the_whole_batch(capture: Any) -> None:
    """Nothing of a refused request is in the topic."""
    events = [{"event": "good", "distinct_id": "d"}, {"event": "", "distinct_id": "d"}]
    response = capture.client.post("/batch", json=capture.batch(*events))
    assert response.status_code == 400
    assert "event 1: event submitted with an empty event name" in response.json()["detail"]
    assert capture.records_of(response) == []


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (1_000_000, "its properties have 1000008 bytes"),
        (998_900, "makes a record of 99"),  # with all the rest
    ],
)
def test_event_too_large_for_kafka_is_named(capture: Any, length: int, text: str) -> None:
    """The answer says which event was left out and how large it is; the other one is kept."""
    events = [
        {"event": "small", "distinct_id": "d"},
        {"event": "large", "distinct_id": "d", "properties": {"x": "y" * length}},
    ]
    response = capture.client.post("/batch", json=capture.batch(*events))
    assert response.status_code == 200
    [rejected] = response.json()["rejected"]
    assert (rejected["index"], rejected["code"]) == (1, "too_large")
    assert text in rejected["detail"]
    small, evidence = sorted(
        (record.value for record in capture.records_of(response)), key=lambda v: "refused" in v
    )
    assert small["event"] == "small"
    assert (evidence["event"], evidence["refused"]) == ("large", "too_large")


def test_largest_record_that_is_let_through_is_taken_by_kafka(capture: Any) -> None:
    """The edge's limit on a record leaves room for Kafka's framing."""
    event = {"event": "large", "distinct_id": "d", "properties": {"x": "y" * 998_000}}
    response = capture.client.post("/batch", json=capture.batch(event))
    assert response.status_code == 200, response.text
    assert len(capture.records_of(response)) == 1
