"""The search for cyclic garbage while the capture API serves."""

from __future__ import annotations

import gc

from capture_api.garbage import NEW_OBJECTS, search_rarely


def test_the_search_is_rare_but_not_off() -> None:
    """What exists at the start is set aside; later cycles are still found."""
    before = gc.get_threshold()
    try:
        search_rarely()
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
        assert gc.get_threshold()[0] == NEW_OBJECTS
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
