"""What is long is done piece by piece, and comes out as if it were done at once.

Everything is done twice here: as it is, and with pieces so small that short texts are long.
"""

from __future__ import annotations

import gzip
import importlib
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import msgspec
import pytest
import zstandard

from capture_api.events.records import Request, build_records
from capture_api.events.refused import RefusedEvent
from capture_api.events.uuids import MintSeed
from capture_api.protection.routing import Router, Topics
from capture_api.refusal import Refused
from capture_api.turns import pause
from capture_api.v1 import events as v1
from capture_api.v1.batch import event_uuids, parse_batch, read_rarities
from capture_api.wire import long_json
from capture_api.wire.decoding import decode_payload
from capture_api.wire.inflate import inflate_as
from capture_api.wire.lz64 import decode_lz64
from capture_api.wire.numbers import out_of_range
from capture_api.wire.payload import parse_payload
from capture_api.wire.query import Query
from capture_api.wire.skeleton import skeleton
from capture_api.wire.surrogates import replace_lone_surrogates
from capture_api.wire.utf8 import check_utf8
from tests.lz_string import compress_to_base64

NOW = 1_772_625_600_000_000
UUID = "019cb000-0000-7000-8000-%012d"
REQUEST = Request(NOW, UUID % 0, "10.0.0.1", "agent", "", None, False, MintSeed(NOW, b"request"))
ROUTER = Router(Topics("events", "events_historical", "events_overflow"), None)
LIMIT = 1 << 20

_MODULES = (
    *("pieces", "long_json", "numbers", "surrogates", "utf8", "skeleton", "decoding"),
    *("inflate", "lz64", "payload"),
)
Twice = Callable[..., None]


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> Twice:
    """Does something as it is, and in pieces, and sees that the outcome is the same."""

    def check(work: Callable[..., Any], *args: Any) -> None:
        expected = outcome(work, *args)
        with monkeypatch.context() as small:
            for name in _MODULES:
                module = importlib.import_module(f"capture_api.wire.{name}")
                small.setattr(module, "AT_ONCE_BYTES", 64)
            small.setattr("capture_api.v1.batch.AT_ONCE_BYTES", 64)
            small.setattr("capture_api.wire.decoding._BASE64_AT_ONCE", 64)
            small.setattr("capture_api.wire.decoding._UNQUOTED_AT_ONCE", 16)
            small.setattr("capture_api.wire.long_json.PART_BYTES", 200)
            small.setattr("capture_api.wire.lz64._CODES_AT_ONCE", 8)
            small.setattr("capture_api.wire.numbers._SUSPECTS_AT_ONCE", 2)
            small.setattr("capture_api.wire.depth._BRACKETS_AT_ONCE", 16)
            assert outcome(work, *args) == expected

    return check


def outcome(work: Callable[..., Any], *args: Any) -> Any:
    """What it gives or raises."""
    try:
        return work(*args)
    except Refused as refused:
        return refused.status, refused.code, refused.detail
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        return type(error), str(error)


def v0(text: bytes) -> tuple[Any, ...]:
    """What becomes of a text: what it says of all its events, and the records."""
    check_utf8(text)
    payload = parse_payload(text)
    left_out: list[RefusedEvent] = []
    route = ROUTER.route(7, payload.historical)
    records = build_records(payload, 7, REQUEST, route, left_out)
    return payload.token, payload.sent_at, payload.peculiar, payload.one_line, records, left_out


def of_v1(text: bytes) -> v1.Built:
    """What becomes of a text in protocol v1."""
    batch = parse_batch(text)
    request = v1.Request(
        *("phc_x", NOW, UUID % 0, NOW, "10.0.0.1", "agent", ""),
        b'"$lib":"a","$lib_version":"1"',
        read_rarities(text),
    )
    route = ROUTER.route(7, bool(batch.historical_migration))
    return v1.build_records(batch, event_uuids(batch.batch), 7, request, route)


VALUES: list[Any] = [
    *(
        1,
        2.5,
        None,
        True,
        "x",
        "}, {",
        '},{"event":"no","distinct_id":"no"},',
        "\\",
        'é"\\',
        "\ud83d",
    ),
    *([], {}, [{"event": "q"}, {"event": "r"}], {"a": {"b": [{}, {}]}}, [[[1], 2], {"": []}]),
    *("$ignore_sent_at", {"$cookieless_mode": True, "token": "phc_x"}, "a\\ud83d", "💥" * 9),
]
DAMAGES = [
    *(
        b'"',
        b"}",
        b"]",
        b"{",
        b"[",
        b",",
        b"\\",
        b"1",
        b":",
        b" ",
        b"\n",
        b"\xff",
        b"1e999,",
        b"\0",
    ),
    *(b'{"batch":[]}', b'"batch":[{"event":5}],', b'"batch":null,', b'"b\\u0061tch":[{}],'),
    *(b'"\\ud83d"', b"\xc3", b"null", b'"event":5,', b'"x":' + b"[" * 2000),
]


def an_event(chance: random.Random, number: int) -> dict[str, Any]:
    properties = {f"k{n}": chance.choice(VALUES) for n in range(chance.randrange(6))}
    event = {
        "event": chance.choice(["a", "$pageview", '},{"event":"']),
        "distinct_id": chance.choice(["u1", "u2", "\ud83d"]),
        "uuid": UUID % number,
        "timestamp": "2026-03-04T11:00:00Z",
        "properties": properties,
    }
    items = list(event.items())
    if not chance.randrange(5):
        chance.shuffle(items)
    if not chance.randrange(30):
        items.append(("junk", "j" * chance.randrange(3_000)))
    return dict(items)


def a_text(chance: random.Random) -> bytes:
    """A request as SDKs send it, or nearly; often damaged."""
    events = [an_event(chance, number) for number in range(chance.randrange(1, 40))]
    inner = {"batch": [{"event": "no"}] * chance.randrange(30)}
    request: Any = chance.choice(
        [
            {"api_key": "phc_x", "batch": events, "sent_at": "2026-03-04T11:59:00Z"},
            {"batch": events, "token": "phc_x", "x": inner, "created_at": "2026-03-04T11:00:00Z"},
            {"x": inner, "created_at": "2026-03-04T11:00:00Z", "batch": events, "api_key": "phc_x"},
            {"batch": events[:1], "created_at": "2026-03-04T11:00:00Z"},
            [{**event, "api_key": "phc_x"} for event in events],
        ]
    )
    separators = chance.choice([(",", ":"), (", ", ": ")])
    text = json.dumps(
        request,
        indent=chance.choice([None, None, 1]),
        separators=separators,
        ensure_ascii=chance.random() < 0.7,
    ).encode("utf-8", "replace")
    for _ in range(chance.choice([0, 0, 0, 1, 1, 2])):
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.choice(DAMAGES) + text[place + chance.randrange(2) :]
    return text


@pytest.mark.parametrize("seed", range(40))
def test_texts_come_out_the_same(seed: int, twice: Twice) -> None:
    """Records byte for byte, or the same refusal in the same words; in both protocols."""
    chance = random.Random(seed)
    for _ in range(12):
        text = a_text(chance)
        twice(v0, text)
        twice(of_v1, text)


def test_most_texts_are_parsed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would compare nothing."""
    monkeypatch.setattr("capture_api.wire.payload.AT_ONCE_BYTES", 64)
    monkeypatch.setattr(long_json, "AT_ONCE_BYTES", 64)
    monkeypatch.setattr(long_json, "PART_BYTES", 200)
    events = [an_event(random.Random(n), n) for n in range(100)]
    text = json.dumps({"api_key": "phc_x", "batch": events}).encode()
    sizes = []
    parts = long_json._parts

    def noting(*args: Any) -> Any:
        for end, part in parts(*args):
            sizes.append(len(part))
            yield end, part

    monkeypatch.setattr(long_json, "_parts", noting)
    assert len(parse_payload(text).events) == 100
    assert len(sizes) > 20
    assert sum(sizes) > 90


def test_a_forged_stand_in_is_no_stand_in() -> None:
    """What stands for the events that are parsed is known to nobody outside."""
    other = msgspec.json.decode(long_json._STAND_IN)
    assert len(other["event"]) == 32


@pytest.mark.parametrize("seed", range(20))
def test_wrappings_come_undone_the_same(seed: int, twice: Twice) -> None:
    """gzip, base64, forms and lz64, whole and damaged; and the encodings of protocol v1."""
    chance = random.Random(seed)
    for _ in range(6):
        text = a_text(chance)
        if not chance.randrange(6):
            text = bytes(chance.choice(b"abc") for _ in range(64 * chance.randrange(4)))
        half = len(text) // 2
        for pack in (
            gzip.compress,
            lambda t, half=half: gzip.compress(t[:half]) + gzip.compress(t[half:]) + b"behind",
            lambda t: b"data=" + b"".join(b"%%%02X" % byte for byte in t) + b"&ver=1",
            lambda t: msgspec.json.encode(t)[1:-1],  # base64
            lambda t: compress_to_base64(t.decode("latin-1")).encode(),
        ):
            packed = damaged(pack(text), chance)
            for hint in ("", "gzip", "lz64"):
                twice(unwrapped, packed, hint)
        for encoding, encode in (
            ("gzip", gzip.compress),
            ("deflate", zlib.compress),
            ("deflate", lambda t: zlib.compress(t)[2:-4]),
            ("br", brotli.compress),
            ("zstd", zstandard.compress),
        ):
            twice(inflate_as, encoding, damaged(encode(text), chance), LIMIT)
            twice(inflate_as, encoding, encode(text), len(text))
            twice(inflate_as, encoding, encode(text), max(0, len(text) - 1))


def unwrapped(packed: bytes, hint: str) -> bytes:
    """The text in a body that the query gives this hint about."""
    headers = {b"content-type": b"application/x-www-form-urlencoded; charset=utf-8"}
    query = Query(compression=hint)
    return decode_payload(packed, path="/e", query=query, headers=headers, limit=LIMIT)


def damaged(packed: bytes, chance: random.Random) -> bytes:
    """Mostly whole."""
    place = chance.randrange(len(packed) + 1)
    return chance.choice(
        [
            packed,
            packed,
            packed[:place],
            packed[:place] + b"=" + packed[place + 1 :],
            packed + b"==",
        ]
    )


@pytest.mark.parametrize("seed", range(20))
def test_looks_see_the_same(seed: int, twice: Twice) -> None:
    """Numbers out of range, surrogates, and bytes that are no UTF-8, wherever a piece ends."""
    chance = random.Random(seed)
    alphabet = [
        *(b'"', rb"\\", rb"\"", rb"\n", rb"\ud83d", rb"\udc00", rb"\ud83d\udca5"),
        *(b"1e999", b"1e10", b"9" * 400, b"9" * 201, b",", b":", b"[", b" ", b"-", b"\\"),
        *("é💥".encode(), b"\xe2", b"\xa9"),
        *(b"\0", b"x", b"{}", b"f"),
    ]
    for _ in range(30):
        text = b"".join(chance.choices(alphabet, k=chance.randrange(200)))
        twice(lambda text=text: out_of_range(text, skeleton(text)))
        twice(replace_lone_surrogates, text)
        twice(check_utf8, text)
        units = text.decode("latin-1")
        twice(decode_lz64, compress_to_base64(units).encode(), LIMIT)


def test_nothing_is_left_over() -> None:
    """Outside of a request a pause is nothing."""
    pause()
