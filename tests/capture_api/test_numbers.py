"""Numbers that no double can hold, and events with too many keys."""

from __future__ import annotations

import json
from math import isinf
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture_api.refusal import Refused
from capture_api.v1.batch import read_rarities
from capture_api.wire import numbers
from capture_api.wire.keys import MAX_KEYS, too_many_keys
from capture_api.wire.numbers import MAX_SUSPECTS, TOO_MANY_SUSPECTS
from capture_api.wire.payload import parse_payload
from capture_api.wire.skeleton import skeleton

DIGITS = "9" * 400


def out_of_range(text: bytes) -> bytes | None:
    """The number that the edge refuses in this text."""
    return numbers.out_of_range(text, skeleton(text))


@pytest.mark.parametrize(
    "number",
    [
        "1e999",
        "-1e999",
        "1E999",
        "1e+999",
        "1.5e309",
        "1e0000000309",
        "1.7976931348623159e308",
        "12345e305",
        f"0.{DIGITS}e309",
        DIGITS,
        f"-{DIGITS}",
        f"{DIGITS}.5",
        f"{DIGITS[:250]}e60",
        "9" * 309,
    ],
)
@pytest.mark.parametrize(
    "text",
    ['{"a":%s}', '{"a": %s }', "[%s]", "[1,%s,2]", '{"a":[\n%s\n],"b":"c"}', '{"\\\\":%s}'],
)
def test_out_of_range(number: str, text: str) -> None:
    """A number that rounds to infinity is found wherever it stands."""
    assert out_of_range((text % number).encode()) == number.encode()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a":1e308,"b":-1e308,"c":1.7976931348623157e308}',
        '{"a":1e-999,"b":0e999,"c":1E-7,"d":1e5}',
        '{"a":"1e999"}',
        '{"a":"x,1e999,y"}',
        '{"a":"\\",1e999,"}',
        '{"a":"\\\\\\",1e999,"}',
        '{"a":"\\\\","b":",1e999,"}',
        f'{{"a":"{DIGITS}"}}',
        f'{{"a":": {DIGITS},"}}',
        f'{{"a":0.{DIGITS}}}',
        f'{{"a":0.{"0" * 400}1e400}}',
        '{"1e999":true,"a":false,"e":"e"}',
        '{"uuid":"01e999aa-1e12-4e34-8e56-1e9991e99912"}',
        f"[{1234567890123456789}{',1234567890123456789' * 100}]",
        f'{{"a":{"9" * 308}}}',
    ],
)
def test_in_range(text: str) -> None:
    """Neither numbers that a double holds, nor zero, nor what stands in strings."""
    assert out_of_range(text.encode()) is None


_numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.one_of(
        st.integers(0, 10**30).map(str), st.integers(290, 320).map(lambda count: "8" * count)
    ),
    st.one_of(st.just(""), st.integers(0, 10**20).map(lambda digits: f".{digits}")),
    st.one_of(
        st.just(""),
        st.builds(
            "{}{}{}".format,
            st.sampled_from("eE"),
            st.sampled_from(["", "+", "-", "00", "+0"]),
            st.integers(0, 1200),
        ),
    ),
)
_strings = st.one_of(
    st.text(max_size=8), st.text('e1+,:"\\ ', max_size=20), _numbers.map(lambda text: f":{text},")
)
_leaves = st.one_of(_numbers, _strings.map(json.dumps), st.sampled_from(["true", "false", "null"]))
_values = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(_strings.map(json.dumps), inner, max_size=4).map(
            lambda pairs: f"{{{','.join(f'{key}:{value}' for key, value in pairs.items())}}}"
        ),
    ),
    max_leaves=12,
)


@given(value=_values)
def test_agrees_with_a_parser(value: str) -> None:
    """A number is found if and only if reading it as a double gives infinity."""
    infinite: list[str] = []

    def read(number: str) -> float:
        if isinf(float(number)):
            infinite.append(number)
        return 0.0

    text = f'{{"a":{value}}}'
    json.loads(text, parse_float=read, parse_int=read)
    found = out_of_range(text.encode())
    assert found == (infinite[0].encode() if infinite else None)


def test_work_is_bounded() -> None:
    """A text with more numbers near the limit than any event has is given up."""
    assert out_of_range(b"[%b1]" % (b"1e305," * (MAX_SUSPECTS - 1))) is None
    text = b'{"event":"a","distinct_id":"b","token":"t","properties":{"n":[%b1]}}' % (
        b"1e305," * (MAX_SUSPECTS + 2)
    )
    assert out_of_range(text) == TOO_MANY_SUSPECTS
    with pytest.raises(Refused, match=f"more than {MAX_SUSPECTS} of its numbers"):
        parse_payload(text)
    with pytest.raises(Refused, match=f"more than {MAX_SUSPECTS} of its numbers"):
        read_rarities(text)


@pytest.mark.parametrize(("number", "told"), [("1e999", "1e999"), (DIGITS, "… of 400 characters")])
def test_refused_with_the_number(number: str, told: str) -> None:
    """The request is refused, and told which number it was."""
    event = f'{{"event":"a","distinct_id":"b","properties":{{"n":{number}}}}}'
    with pytest.raises(Refused) as refused:
        parse_payload(f'{{"api_key":"phc_x","batch":[{event}]}}'.encode())
    assert (refused.value.status, refused.value.code) == (400, "bad_number")
    assert told in refused.value.detail


def _nested(count: int) -> Any:
    return {"list": [{str(number): {}} for number in range(count - 1)]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({str(number): 0 for number in range(MAX_KEYS)}, False),
        ({str(number): 0 for number in range(MAX_KEYS + 1)}, True),
        (_nested(MAX_KEYS), False),
        (_nested(MAX_KEYS + 1), True),
        ({"text": '":' * MAX_KEYS, "more": ['\\":"'] * MAX_KEYS}, False),
        ({"text": "x" * 200_000}, False),
    ],
)
def test_keys_on_all_levels_count(value: Any, expected: bool) -> None:
    """Keys of all objects count, what looks like one inside a string does not."""
    assert too_many_keys(msgspec.json.encode(value)) is expected
