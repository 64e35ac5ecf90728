"""Python's search for cyclic garbage, set for a server that makes next to none.

Every request in flight is a few dozen live objects, so with the usual thresholds the search runs
every few requests, finds nothing, and costs a tenth of the processor.
"""

from __future__ import annotations

import gc

NEW_OBJECTS = 50_000
"""Objects made and not freed before the youngest are searched: those of some thousand requests."""


def search_rarely() -> None:
    """Leave what exists now alone for good, and what comes for longer. Called once, when all is up.

    An exception's traceback can make a cycle, and each is found in the end; what is held until then
    is bounded by NEW_OBJECTS.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 20)
