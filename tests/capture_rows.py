"""Tables of capture requests: what is sent, what is answered, and what Kafka then holds."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx

from tests.lz_string import compress_to_base64

OLD_PATHS = ("/e", "/capture", "/track")
NEW_PATHS = ("/i/v0/e", "/batch", "/i/v0/ai/batch")
JSON = "application/json"
TEXT = "text/plain"
FORM = "application/x-www-form-urlencoded"
TOKEN = "phc_TOKEN"  # stands for the project's own in every body


@dataclass(frozen=True)
class Row:
    """One request and what becomes of it."""

    id: str
    path: str
    body: Any = None  # what is JSON once it is unwrapped
    wrap: Callable[[bytes], bytes] = bytes
    status: int = 200
    events: tuple[str, ...] = ()  # names of the events that are kept
    query: dict[str, str] = field(default_factory=dict)
    content_type: str | None = JSON
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    text: str = ""  # in the answer
    in_query: bool = False  # the wrapped body goes into `data` of the query
    head: dict[str, Any] = field(default_factory=dict)  # of the first record


def event(**fields: Any) -> dict[str, Any]:
    """A good event with its own token, changed; None leaves a field out."""
    whole = {"event": "one", "distinct_id": "d", "api_key": TOKEN, **fields}
    return {name: value for name, value in whole.items() if value is not None}


def batch(*events: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A batch with its token."""
    return {"api_key": TOKEN, "batch": list(events), **fields}


def in_base64(text: bytes) -> bytes:
    """Base64 of it."""
    return base64.b64encode(text)


def in_lz64(text: bytes) -> bytes:
    """lz64 of it."""
    return compress_to_base64(text.decode()).encode()


def in_form(text: bytes) -> bytes:
    """A form with it as its field."""
    return urlencode({"data": text, "ver": "1.2.3"}).encode()


def in_base64_form(text: bytes) -> bytes:
    """A form with its base64, the + unescaped as old browsers left it."""
    return b"ip=1&data=" + base64.b64encode(text) + b"&ver=1"


def in_lz64_form(text: bytes) -> bytes:
    """A form with its lz64, which says so."""
    return urlencode({"data": in_lz64(text), "compression": "lz64"}).encode()


def in_gzip_form(text: bytes) -> bytes:
    """A form with base64 of its gzip."""
    return in_base64_form(gzip.compress(text))


@dataclass(frozen=True)
class Outcome:
    """An answer, and the values of the records that came of the request."""

    response: httpx.Response
    values: list[dict[str, Any]]


def send(capture: Any, row: Row) -> httpx.Response:
    """Send the row's request."""
    text = b"" if row.body is None else json.dumps(row.body, ensure_ascii=False).encode()
    text = text.replace(TOKEN.encode(), capture.token.encode())
    wrapped = row.wrap(text)
    query = {name: value.replace(TOKEN, capture.token) for name, value in row.query.items()}
    if row.in_query:
        query["data"] = wrapped.decode()
    headers = dict(row.headers)
    if row.content_type is not None:
        headers["Content-Type"] = row.content_type
    url = f"{row.path}?{urlencode(query)}"
    content = b"" if row.in_query else wrapped
    response: httpx.Response = capture.client.request(
        row.method, url, content=content, headers=headers
    )
    return response


def send_all(capture: Any, rows: Iterable[Row]) -> dict[str, Outcome]:
    """Send every row; what became of each, by its name."""
    responses = {row.id: send(capture, row) for row in rows}
    by_receipt: dict[str, list[dict[str, Any]]] = {}
    for record in capture.records():
        if "refused" not in record.value:
            by_receipt.setdefault(record.value["request_id"], []).append(record.value)
    return {
        name: Outcome(response, by_receipt.get(response.headers["X-Request-Id"], []))
        for name, response in responses.items()
    }


def check(row: Row, outcome: Outcome) -> None:
    """The answer's status, type and text, and exactly the events that are to be kept."""
    response = outcome.response
    assert response.status_code == row.status, response.text
    assert sorted(value["event"] for value in outcome.values) == sorted(row.events)
    assert row.text in response.text
    if response.status_code == 204:
        assert response.content == b""
    else:
        assert response.headers["Content-Type"] == "application/json"
    if response.status_code == 200:
        assert response.json() == {"status": "Ok"}
    elif response.status_code >= 400:
        assert response.json().keys() == {"code", "detail"}
    for name, expected in row.head.items():
        assert outcome.values[0][name] == expected
