"""Large bodies: as clients may really send them, and as somebody would who means harm."""

from __future__ import annotations

import gzip
import json
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MB = 1_000_000
_V1_HEADERS = {
    "Content-Type": "application/json",
    "PostHog-Sdk-Info": "bench/1",
    "PostHog-Attempt": "1",
    "PostHog-Request-Id": "0190b7f0-0000-7000-8000-000000000000",
    "PostHog-Request-Timestamp": "2026-01-01T00:00:00Z",
}
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_PROPERTIES = {f"property_{number}": f"value {number} of something" for number in range(18)} | {
    "number": 1.5,
    "elements": [{"tag": "a"}, {"tag": "b", "nth": [1, 2]}],
}


@dataclass(frozen=True)
class Body:
    """A request of the benchmark."""

    name: str
    content: bytes
    path: str = "/batch/"
    headers: dict[str, str] = field(default_factory=dict)


def bodies(token: str) -> Iterator[Body]:
    """All of them, one after the other: they are large."""
    for size in (1, 5, 20):
        yield Body(f"{size} MB of events", usual(token, size * MB))
    yield _packed("27 MB of events in gzip", usual(token, 27 * MB))
    yield _packed("45,000 events in gzip, 40 MB", usual(token, 40 * MB))
    yield Body("50,000 tiny events", _request(token, ("{}" for _ in range(50_000))))
    for name, make in _LARGE_VALUES.items():
        events = _request(token, (make(900_000) for _ in range(20)))
        yield Body(f"20 events of 900 kB: {name}", events)
    for name, make in _LARGE_VALUES.items():
        for size in (20, 100):
            one = _request(token, iter([make(size * MB)]))
            yield _packed(f"one event of {size} MB in gzip: {name}", one)
    yield _packed("a bomb: 200 MB of zeros in gzip", bytes(200 * MB))
    yield _packed("99 MB of blanks in gzip", b" " * (99 * MB))
    yield _packed("50 MB with an error at its end", usual(token, 50 * MB)[:-3] + b"x]}")
    yield Body("a form of 20 MB, every byte escaped", b"data=" + b"%7B" * 6_600_000, "/e/", _FORM)
    yield Body("20 MB in base64", b64encode(usual(token, 15 * MB)))
    v1 = "/i/v1/analytics/events"
    headers = _V1_HEADERS | {"Authorization": f"Bearer {token}", "Content-Encoding": "gzip"}
    yield Body("protocol v1, 40 MB", gzip.compress(usual(token, 40 * MB), 1), v1, headers)
    tiny = _request(token, ("{}" for _ in range(50_000)))
    yield Body("protocol v1, 50,000 tiny events", gzip.compress(tiny, 1), v1, headers)


_LARGE_VALUES: dict[str, Callable[[int], str]] = {
    "a string": lambda size: _with("x" * size, '"', '"'),
    "escapes": lambda size: _with("\\n" * (size // 2), '"', '"'),
    "numbers": lambda size: _with("1," * (size // 2), "[", "1]"),
    "empty arrays": lambda size: _with("[]," * (size // 3), "[", "1]"),
    "depth": lambda size: _with(("[" * 100 + "]" * 100 + ",") * (size // 201), "[", "1]"),
    "keys": lambda size: _with('"":0,' * (size // 5), "{", '"":1}'),
}
"""What makes properties so large, by its name."""


def _with(content: str, opened: str, closed: str) -> str:
    return f'{{"x":{opened}{content}{closed}}}'


def usual(token: str, size: int) -> bytes:
    """Events with some twenty properties, so many bytes."""
    properties = json.dumps(_PROPERTIES, separators=(",", ":"))
    return _request(token, (properties for _ in range(size // (len(properties) + 150))))


def _request(token: str, properties: Iterator[str]) -> bytes:
    """Events with these properties, which both protocols take."""
    events = ",".join(
        f'{{"event":"page","distinct_id":"user-{number % 977}","uuid":"{_uuid(number)}",'
        f'"timestamp":"2026-01-01T00:00:00Z","properties":{text}}}'
        for number, text in enumerate(properties)
    )
    return (
        f'{{"api_key":"{token}","created_at":"2026-01-01T00:00:00Z","batch":[{events}]}}'.encode()
    )


def _uuid(number: int) -> str:
    return str(uuid.UUID(int=7 << 76 | 2 << 62 | number))


def _packed(name: str, text: bytes) -> Body:
    return Body(name, gzip.compress(text, 1), headers={"Content-Encoding": "gzip"})
