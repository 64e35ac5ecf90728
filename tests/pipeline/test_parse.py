"""Parsing: all at once or one by one, one meaning, and no value that hangs on its neighbours."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.pipeline import parse
from assets.pipeline.columns import HEAD, PROMOTED
from assets.pipeline.parse import PARSED, parse_one, parse_values
from assets.pipeline.reasons import Reason, Rejection
from tests.records import spelled, value_of, value_with, value_without

ODD = value_with(9, event=5)
"""A value that only the patient parser can judge."""

Outcome = tuple[Any, ...] | Rejection

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*PROMOTED.values(), "properties", "uuid", "v"]) | st.text()
property_objects = st.dictionaries(names, json_values, max_size=6)

# Texts that are JSON, or nearly: what a hostile or broken client can make the edge's form hold.
fragments = st.sampled_from(
    [
        *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b"\n", b" ", b"\t"),
        *(b"NaN", b"-Infinity", b"Info", b"1", b"1e400", b"01", b"-", b"true", b"null"),
        *(b'"$lib":', b'"$os":"Linux"', b'"a":1', b',"properties":{', b'"x":{}'),
        *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b"\xff", b"\xc3"),
        *(b'[2,"', b'{"v":1,"uuid":"', b"}}", b"]\n{", b"\r", b"\\n", b"/*x*/"),
    ]
)
raw_objects = st.lists(fragments, max_size=8).map(lambda found: b"{" + b"".join(found) + b"}")


def outcomes(values: list[bytes]) -> list[Outcome]:
    """What became of each value of a chunk."""
    parsed = parse_values(pa.array(values, pa.binary()))
    rows = zip(*(column.to_pylist() for column in parsed.columns.columns), strict=True)
    found: dict[int, Outcome] = dict(zip(parsed.rows.tolist(), rows, strict=True))
    assert list(found) == sorted(found)
    assert not found.keys() & parsed.rejections.keys()
    found |= parsed.rejections
    return [found[number] for number in range(len(values))]


def together(value: bytes) -> tuple[Any, ...] | None:
    """A value as it is read together with others; None when it cannot be."""
    texts = parse._as_text(pa.array([value], pa.binary()))
    shaped = parse._of_usual_shape(texts)
    if not shaped.all():
        return None
    table, read = parse._read_together(texts, shaped)
    return tuple(column[0].as_py() for column in table.columns) if read.all() else None


def verdict(outcome: Outcome) -> object:
    """What must be the same whichever way a value was parsed."""
    return outcome.reason if isinstance(outcome, Rejection) else outcome


@given(st.lists(property_objects, min_size=1, max_size=5))
def test_both_parsers_and_both_layouts_give_the_same_rows(objects: list[dict[str, Any]]) -> None:
    """Whichever way a value takes, and whichever Tidemark wrote it, it gives the same row."""
    values = [value_of(number, spelled(each)) for number, each in enumerate(objects)]
    patient = [parse_one(value) for value in values]
    assert outcomes(values) == patient
    assert outcomes([*values, ODD])[:-1] == patient
    for number, (value, expected) in enumerate(zip(values, patient, strict=True)):
        assert together(value) == expected
        older = parse_one(value_with(number, properties=objects[number]))
        assert not isinstance(older, Rejection)
        assert not isinstance(expected, Rejection)
        assert (older[0], *older[1:]) == (1, *expected[1:])


@given(st.text(), st.text(), st.none() | st.text())
def test_any_text_in_a_head_is_read_as_it_was_written(
    event: str, user_agent: str, client_timestamp: str | None
) -> None:
    """Quotes, commas, escapes and line breaks in a head's texts change nothing but themselves."""
    fields = {"event": event, "user_agent": user_agent, "client_timestamp": client_timestamp}
    value = value_of(1, **fields)
    for chunk in [value], [value_of(0), value, value_of(2)], [ODD, value]:
        outcome = outcomes(chunk)[chunk.index(value)]
        assert outcome == parse_one(value)
        assert not isinstance(outcome, Rejection)
        assert {name: outcome[HEAD.get_field_index(name)] for name in fields} == fields


@settings(max_examples=1_000, deadline=None)
@given(st.lists(fragments, max_size=4), st.integers(0, 200))
def test_a_spoilt_head_has_its_verdict_alone(found: list[bytes], place: int) -> None:
    """A head that is nearly right gets what it gets alone, and takes no neighbour with it."""
    value = value_of(1)
    at = len(b'[2,"') + place % value.index(b"\n")
    spoilt = value[:at] + b"".join(found) + value[at:]
    beside = outcomes([value_of(0), spoilt, value_of(2), spoilt, value_of(3)])
    assert beside[1] == beside[3] == outcomes([spoilt])[0]
    assert [beside[at] for at in (0, 2, 4)] == [parse_one(value_of(at)) for at in (0, 2, 3)]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_bytes_among_good_records_change_none_of_them(data: st.DataObject) -> None:
    """Whatever else is in a chunk, good records come out as they are, and the rest has reasons."""
    good = [value_of(n, event=event) for n, event in enumerate(["a", "CORP\\b", 'c","', "\td\0"])]
    cut = st.tuples(st.sampled_from(good), st.integers(0, 400), st.integers(0, 400)).map(
        lambda found: found[0][: found[1]] + found[0][found[1] + found[2] :]
    )
    lines = st.lists(fragments, max_size=12).map(b"".join)
    others = data.draw(st.lists(st.binary(max_size=60) | lines | cut, min_size=1, max_size=6))
    chunk = data.draw(st.permutations([*good, *others]))
    for value, outcome in zip(chunk, outcomes(chunk), strict=True):
        patient = parse_one(value)
        assert verdict(outcome) == verdict(patient)
        if value in good:
            assert not isinstance(outcome, Rejection)
            assert outcome[len(HEAD)].encode() == value.partition(b"\n")[2]


@pytest.mark.parametrize(
    ("odd", "alone"),
    [
        (value_of(1, event="CORP\\alice", distinct_id='"\\\\"', user_agent="\\"), False),
        (value_of(1, client_timestamp="null", ip="", flags=-1), False),
        (value_of(1, event="a\tb"), True),
        (value_of(1, event="\u2028\x7f").replace(b"\x7f", b"\\u007f"), True),
        (value_of(1, offset_ms=10**18), True),
        (value_of(1, b'{"$lib":1}'), True),
        (value_of(1, b'{"a":nan}'), True),
        (value_of(1, b'{"a":"\xff"}'), True),
    ],
)
def test_only_the_odd_are_read_patiently(
    odd: bytes, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One odd record among many costs no neighbour its fast way; a backslash is not odd."""
    read: list[bytes] = []

    def note(value: bytes) -> Outcome:
        read.append(value)
        return parse_one(value)

    def note_properties(text: bytes) -> tuple[str | None, ...]:
        read.append(text)
        return promoted_texts(text)

    expected, promoted_texts = parse_one(odd), parse._promoted_texts
    monkeypatch.setattr(parse, "parse_one", note)
    monkeypatch.setattr(parse, "_promoted_texts", note_properties)
    values = [value_of(n) for n in range(1_000)]
    values[500] = odd
    assert outcomes(values)[500] == expected
    assert (odd in read or odd.partition(b"\n")[2] in read) is alone
    assert len(read) <= 8


@settings(max_examples=1_000, deadline=None)
@given(raw_objects)
def test_nearly_json_is_taken_or_refused_alike(properties: bytes) -> None:
    """What one parser takes, the next takes with the same row: neighbours change no verdict."""
    head, mark, _ = value_of(1).partition(b"\n")
    value = head + mark + properties
    patient = parse_one(value)
    assert together(value) in (None, patient)
    alone = outcomes([value])[0]
    assert verdict(alone) == verdict(outcomes([value_of(0), value, ODD])[1])
    assert verdict(alone) == verdict(outcomes([value_of(0), value])[1])
    if not isinstance(alone, Rejection):
        assert isinstance(msgspec.json.decode(alone[len(HEAD)], type=dict[str, msgspec.Raw]), dict)


@given(property_objects, st.sampled_from([" ", "\t", ""]))
def test_the_bytes_of_properties_are_the_clients(found: dict[str, Any], blank: str) -> None:
    """Whatever the properties hold, their text is what was sent, byte for byte."""
    text = json.dumps(found, indent=blank, ensure_ascii=False).replace("\n", " ").encode()
    for outcome in outcomes([value_of(1, text)]), outcomes([value_of(1, text), ODD]):
        assert not isinstance(outcome[0], Rejection)
        assert outcome[0][len(HEAD)].encode() == text


@given(
    st.lists(
        st.binary(max_size=80)
        | raw_objects
        | st.sampled_from([value_of(3), b" " + value_of(4), ODD, value_of(5) + b" "]),
        max_size=6,
    )
)
def test_every_value_has_one_outcome(values: list[bytes]) -> None:
    """There is a row or a rejection for every value, whatever its bytes."""
    found = outcomes(values)
    assert len(found) == len(values)
    assert [verdict(each) for each in found] == [verdict(outcomes([v])[0]) for v in values]


def test_cut_off_values_do_not_become_one() -> None:
    """Values that were cut off do not complete each other, and leave their neighbours alone."""
    sound = value_of(1, b'{"a":"}}","b":{"c":{}}}')
    left = sound[: sound.index(b'}}"') + 2]  # ends in the middle of a string, with two braces
    nested = sound[:-2]  # one brace too few, two at its end
    for broken in ([left, left], [nested, nested], [left, nested, left], [nested, left]):
        found = outcomes([value_of(0), *broken, value_of(2)])
        assert [type(each) for each in found[1:-1]] == [Rejection] * len(broken)
        assert found[0] == parse_one(value_of(0))
        assert found[-1] == parse_one(value_of(2))


@pytest.mark.parametrize(
    "attack",
    [
        [value_of(1) + value_of(2), b'[2,"}'],
        [value_of(1) + value_of(2), value_of(3)[:-1] + b'"}'],
        [value_of(1) + b"\n" + value_of(2), value_of(3) + b"\0}"],
        [value_of(1, b'{"a":"}'), value_of(2, b'{", "b":1}'), value_of(3, b'{"x":1}{"y":2}')],
        [value_of(1, b'{"a":1}\0junk}'), value_of(2)],
        [value_of(2), value_of(1, b'{"a":1}\0junk}')],
    ],
)
def test_rows_do_not_slip_to_another_value(attack: list[bytes]) -> None:
    """Two objects in one value and none in another do not make up for each other."""
    for number, outcome in enumerate(outcomes(attack)):
        assert verdict(outcome) == verdict(parse_one(attack[number]))


@pytest.mark.parametrize(
    "after", [b',"x":{"b":2}', b',"properties":{"b":2}', b',"x":1,"properties":{}', b',"x":[{}]']
)
def test_fields_after_properties_do_not_get_into_them(after: bytes) -> None:
    """The text of `properties` is one JSON object, also when other fields stand behind it."""
    value = value_with(1, properties={"a": 1})[:-1] + after + b"}"
    outcome = outcomes([value])[0]
    assert not isinstance(outcome, Rejection)
    assert json.loads(outcome[len(HEAD)]) == json.loads(value)["properties"]


def test_a_nested_mark_does_not_begin_properties() -> None:
    """A field `properties` inside another field of the head is not the record's."""
    value = value_with(1, properties={"a": 1}).replace(
        b',"flags":0', b',"flags":0,"extra":{"b":1,"properties":{"wrong":1}}'
    )
    outcome = outcomes([value])[0]
    assert not isinstance(outcome, Rejection)
    assert outcome[len(HEAD)] == '{"a":1}'


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"Infinity", b"-Inf", b"[1, NaN]"])
def test_numbers_that_json_lacks_are_refused(number: bytes) -> None:
    """NaN and the infinities are not JSON, whatever stands beside them."""
    value = value_of(1, b'{"a":%s}' % number)
    for chunk in [value], [value_of(0), value], [value, ODD]:
        outcome = outcomes(chunk)[chunk.index(value)]
        assert isinstance(outcome, Rejection)
        assert outcome.reason is Reason.NOT_JSON


def test_a_million_levels_do_not_crash() -> None:
    """Deep nesting gives the same verdict alone and beside an odd neighbour."""
    for depth in (200, 3_000, 1_000_000):
        value = value_of(1, b'{"a":' + b"[" * depth + b"]" * depth + b"}")
        alone, beside = outcomes([value])[0], outcomes([value, ODD])[0]
        assert alone == beside
        odd = value_of(1, b'{"$lib":1,"a":' + b'{"b":' * depth + b"1" + b"}" * depth + b"}")
        assert verdict(outcomes([odd])[0]) == verdict(outcomes([odd, ODD])[0])


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("5", "5"),
        ("1.50", "1.50"),
        ("1e400", "1e400"),
        ("true", "true"),
        ("null", None),
        ('{"a":1}', None),
        ("[1]", None),
        ('"\\u00e9\\u0000"', "é\0"),
    ],
)
def test_promoted_properties_become_text(written: str, text: str | None) -> None:
    """A promoted scalar is text as the client wrote it; what is deeper stays in `properties`."""
    outcome = outcomes([value_of(1, f'{{"$lib":{written},"big":1e400}}'.encode())])[0]
    assert not isinstance(outcome, Rejection)
    assert outcome[PARSED.get_field_index("lib")] == text


def test_of_two_equal_names_the_last_counts() -> None:
    """Every parser agrees which of two properties of one name it takes."""
    value = value_of(1, b'{"$lib":"first","$lib":"last"}')
    for chunk in [value], [value, ODD]:
        assert outcomes(chunk)[0][PARSED.get_field_index("lib")] == "last"  # type: ignore[index]


def test_an_absent_head_field_is_null() -> None:
    """A field that was left out parses to null, so that its check can name it."""
    for field in HEAD.names[2:]:
        for chunk in [value_without(1, field)], [value_without(1, field), ODD]:
            outcome = outcomes(chunk)[0]
            assert not isinstance(outcome, Rejection)
            assert outcome[HEAD.get_field_index(field)] is None


def test_a_slice_of_a_longer_array_is_parsed_alone() -> None:
    """Parsing honours an array's offset: what lies before and after it is not looked at."""
    array = pa.array([b"junk", value_of(1), value_of(2), b"junk"], pa.binary())[1:3]
    parsed = parse_values(array)
    assert parsed.rejections == {}
    assert parsed.columns.column("request_id").to_pylist() == ["request-1", "request-2"]
