"""Memory management set for this server: Python's search for cyclic garbage, and C's arenas.

Every request in flight is a few dozen live objects, so with the usual thresholds the search runs
every few requests, finds nothing, and costs a tenth of the processor.
"""

from __future__ import annotations

import ctypes
import gc

ARENAS = 2
"""Heaps of C's allocator: one for the event loop, one for librdkafka's threads to share."""

_M_ARENA_MAX = -8  # of glibc's malloc.h

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


def use_few_arenas() -> None:
    """Keep C's allocator from giving each thread a heap of its own, which keeps what it has had.

    Called before threads start. Nothing happens where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)
