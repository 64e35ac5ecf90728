"""Python's search for cyclic garbage, while batches are staged.

A chunk is thousands of messages and rows that go all at once, when it does. With the usual
thresholds they are searched several times, and nothing is found.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000
"""Objects made and not freed before the youngest are searched: those of a few chunks."""


@contextmanager
def searched_rarely() -> Iterator[None]:
    """A with-block in which the search is rare; what is held until then is bounded."""
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
