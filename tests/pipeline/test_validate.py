"""Validating: a verdict for every record, and for every reason a record that has it."""

from __future__ import annotations

import json
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.pipeline.reasons import SENTENCES, Reason
from assets.pipeline.validate import Judged, Verdict, judge, uuid_bytes
from tests.records import (
    spelled,
    too_large,
    two_lines_with,
    uuid_of,
    value_of,
    value_with,
    value_without,
)

REASONS: list[tuple[bytes, Reason]] = [
    (b"", Reason.EMPTY_VALUE),
    (b"\xff\xfe", Reason.NOT_UTF8),
    (value_of(1, b'{"a":"\xff"}'), Reason.NOT_UTF8),
    (b"hello", Reason.NOT_JSON),
    (value_of(1)[:-1], Reason.NOT_JSON),
    (value_of(1) * 2, Reason.NOT_JSON),
    (value_of(1, b'{"a":"\\ud800"}'), Reason.NOT_JSON),
    (b"[1]", Reason.NOT_AN_OBJECT),
    (b"null", Reason.NOT_AN_OBJECT),
    (value_of(1, b"[]"), Reason.NOT_AN_OBJECT),
    (value_of(1, b"null"), Reason.NOT_AN_OBJECT),
    (value_with(1, v=3), Reason.UNKNOWN_VERSION),
    (two_lines_with(1, v=3), Reason.UNKNOWN_VERSION),
    (value_of(1).replace(b",0]", b"]"), Reason.MISSING_FIELD),
    (two_lines_with(1, event=None), Reason.MISSING_FIELD),
    (two_lines_with(1, event=5), Reason.WRONG_TYPE),
    (two_lines_with(1, project_id="1"), Reason.WRONG_TYPE),
    (two_lines_with(1, timestamp="now"), Reason.WRONG_TYPE),
    (two_lines_with(1, uuid="not-a-uuid"), Reason.INVALID_UUID),
    (two_lines_with(1, timestamp=1 << 64), Reason.NUMBER_OUT_OF_RANGE),
    (value_with(1, v=0), Reason.UNKNOWN_VERSION),
    *((value_without(1, field), Reason.MISSING_FIELD) for field in ("uuid", "event", "v")),
    (value_with(1, distinct_id=None), Reason.MISSING_FIELD),
    (value_with(1, timestamp=None), Reason.MISSING_FIELD),
    (value_without(1, "received_at"), Reason.MISSING_FIELD),
    (value_without(1, "project_id"), Reason.MISSING_FIELD),
    (value_with(1, event=5), Reason.WRONG_TYPE),
    (value_with(1, project_id="1"), Reason.WRONG_TYPE),
    (value_with(1, ip={}), Reason.WRONG_TYPE),
    (value_with(1, uuid="not-a-uuid"), Reason.INVALID_UUID),
    (value_with(1, uuid=uuid_of(1).replace("-", "")), Reason.INVALID_UUID),
    (value_with(1, uuid="é" * 18), Reason.INVALID_UUID),
    (value_with(1, uuid=uuid_of(1)[:-1] + "g"), Reason.INVALID_UUID),
    (value_with(1, timestamp=-2_208_988_800_000_001), Reason.TIME_OUT_OF_RANGE),
    (value_with(1, received_at=10_413_792_000_000_000), Reason.TIME_OUT_OF_RANGE),
    (value_with(1, sent_at=1 << 62), Reason.TIME_OUT_OF_RANGE),
    (value_with(1, project_id=-1), Reason.NUMBER_OUT_OF_RANGE),
    (value_with(1, project_id=1 << 32), Reason.NUMBER_OUT_OF_RANGE),
    (value_with(1, flags=1 << 32), Reason.NUMBER_OUT_OF_RANGE),
    (value_with(1, offset_ms=1 << 63), Reason.NUMBER_OUT_OF_RANGE),
    (value_with(1, timestamp=1 << 64), Reason.NUMBER_OUT_OF_RANGE),
    (too_large(1), Reason.TOO_LARGE),
    (b" " + too_large(1, project_id=0), Reason.TOO_LARGE),
    (value_with(1, refused="too_large"), Reason.TOO_LARGE),
    (spelled({**json.loads(too_large(1)), "refused": "later_reason"}), Reason.MISSING_FIELD),
    (value_with(1, project_id=0), Reason.UNKNOWN_PROJECT),
    (value_with(1, project_id=0, uuid="not-a-uuid"), Reason.INVALID_UUID),
]


def judged(*values: bytes | None) -> Judged:
    """A chunk's verdicts."""
    return judge(pa.array(list(values), pa.binary()))


@pytest.mark.parametrize(("value", "reason"), REASONS)
def test_a_bad_record_is_rejected_with_its_reason(value: bytes, reason: Reason) -> None:
    """Alone or among sound records, a bad one gets its reason and they stay ok."""
    assert judged(value).rejections[0].reason is reason
    among = judged(value_of(7), value, value_of(8))
    assert {row: rejection.reason for row, rejection in among.rejections.items()} == {1: reason}
    assert among.verdicts.tolist() == [Verdict.OK, Verdict.REJECTED, Verdict.OK]
    assert among.columns.column("uuid").to_pylist() == [uuid_of(7), uuid_of(8)]


def test_every_reason_is_reachable_and_has_a_sentence() -> None:
    """The closed list holds no reason that nothing is rejected for."""
    of_imports = {Reason.NOT_TAKEN}  # tests/pipeline/test_imports.py
    assert {reason for _, reason in REASONS} | of_imports == set(Reason) == set(SENTENCES)


def test_the_edges_of_what_columns_hold_are_ok() -> None:
    """The first and last time, the largest numbers and an upper-case uuid are taken."""
    found = judged(
        value_with(1, timestamp=-2_208_988_800_000_000),
        value_with(2, timestamp=10_413_791_999_999_999),
        value_with(3, project_id=(1 << 32) - 1, flags=(1 << 32) - 1, offset_ms=-(1 << 63)),
        value_with(4, uuid=uuid_of(0xABCDEF).upper()),
        value_with(5, flags=None, sent_at=None, ip=None),
    )
    assert found.rejections == {}
    assert found.uuids[3].tobytes() == UUID(uuid_of(0xABCDEF)).bytes


def test_tombstones_and_empty_values_are_told_apart() -> None:
    """No value is a tombstone; a value of no bytes is rejected."""
    found = judged(None, b"", value_of(1), None)
    assert found.verdicts.tolist() == [
        Verdict.TOMBSTONE,
        Verdict.REJECTED,
        Verdict.OK,
        Verdict.TOMBSTONE,
    ]
    assert found.rows.tolist() == [2]


@pytest.mark.parametrize("values", [[], [None], [None, None], [b""], [b"", None]])
def test_chunks_without_anything_to_parse_are_judged(values: list[bytes | None]) -> None:
    """A chunk of nothing, of tombstones or of empty values is no special case."""
    found = judged(*values)
    assert len(found.verdicts) == len(values)
    assert len(found.columns) == len(found.rows) == len(found.uuids) == 0


@given(
    st.lists(
        st.none()
        | st.binary(max_size=20)
        | st.sampled_from([value for value, _ in REASONS])
        | st.integers(0, 50).map(value_of)
        | st.integers(0, 50).map(lambda number: b" " + value_of(number) + b" "),
        max_size=12,
    )
)
def test_every_record_gets_one_verdict(values: list[bytes | None]) -> None:
    """Verdicts, rejections and rows add up, and rows name the records they came from."""
    found = judged(*values)
    assert len(found.verdicts) == len(values)
    assert np.flatnonzero(found.verdicts == Verdict.REJECTED).tolist() == sorted(found.rejections)
    assert np.flatnonzero(found.verdicts == Verdict.OK).tolist() == found.rows.tolist()
    assert [value is None for value in values] == (found.verdicts == Verdict.TOMBSTONE).tolist()
    assert len(found.columns) == len(found.uuids) == len(found.rows)
    requests = found.columns.column("request_id").to_pylist()
    for row, request in zip(found.rows.tolist(), requests, strict=True):
        assert f'"{request}"'.encode() in (values[row] or b"")


@given(st.lists(st.uuids(), max_size=5), st.booleans())
def test_uuids_become_their_bytes(uuids: list[UUID], upper: bool) -> None:
    """A uuid in text form, of either case, is its 16 bytes."""
    texts = [str(each).upper() if upper else str(each) for each in uuids]
    found, good = uuid_bytes(pa.array(texts, pa.string()))
    assert good.all()
    assert found.tobytes() == b"".join(each.bytes for each in uuids)


@given(st.lists(st.none() | st.text(max_size=40) | st.uuids().map(str), max_size=5))
def test_only_uuids_are_taken_for_uuids(texts: list[str | None]) -> None:
    """Other texts, of the same length in bytes too, are not good."""
    _, good = uuid_bytes(pa.array(texts, pa.string()))
    for text, is_good in zip(texts, good.tolist(), strict=True):
        try:
            expected = text is not None and str(UUID(text)) == text.lower()
        except ValueError:
            expected = False
        assert is_good == expected
