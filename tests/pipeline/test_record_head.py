"""A head that is read by itself, of either layout and however broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.pipeline.record_head import read_head
from tests.records import fields_of, spelled, too_large, value_of, value_with

PROPERTIES = {"project_id": 99, "uuid": "the client's", "request_id": "the client's"}


@pytest.mark.parametrize("layout", [1, 2])
def test_a_head_is_read_of_both_layouts(layout: int) -> None:
    """Every field by its name; what a client calls so among its properties is not taken for it."""
    value = (
        value_with(3, properties=PROPERTIES) if layout == 1 else value_of(3, spelled(PROPERTIES))
    )
    for whole in value, value.replace(b",", b" , "), value[:-9]:
        head = read_head(whole)
        assert head.fields == {**fields_of(3), "v": layout}
        assert head.broken is (layout == 1 and whole == value[:-9])
    assert read_head(too_large(4, project_id=7)).fields["project_id"] == 7


@pytest.mark.parametrize("value", [value_of(3), value_with(3)], ids=["layout 2", "layout 1"])
def test_a_broken_head_gives_what_is_before_the_fault(value: bytes) -> None:
    """Cut off anywhere, or with bytes that are no text, it says nothing wrong."""
    whole = read_head(value).fields
    for end in range(len(value)):
        fields = read_head(value[:end]).fields
        assert list(fields.items()) == list(whole.items())[: len(fields)]
    spoilt = read_head(value.replace(b"page viewed", b"\xff"))
    assert spoilt.fields == {**whole, "event": None}


@given(
    st.binary(max_size=80) | st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"[2]\n", b"0"])
)
def test_any_bytes_have_a_head(value: bytes) -> None:
    """There is nothing that it cannot be asked of."""
    assert isinstance(read_head(value).fields, dict)
