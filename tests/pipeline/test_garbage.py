"""The search for garbage: rare while a batch is staged, and as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from assets.pipeline.garbage import NEW_OBJECTS, searched_rarely


def test_the_search_is_rare_only_within_the_block() -> None:
    """What was set before is set again, whatever ends the block."""
    before = gc.get_threshold()
    with searched_rarely():
        assert gc.get_threshold() == (NEW_OBJECTS, *before[1:])
    assert gc.get_threshold() == before

    def fail() -> None:
        with searched_rarely():
            raise ValueError("some trouble")

    with pytest.raises(ValueError, match="some trouble"):
        fail()
    assert gc.get_threshold() == before
