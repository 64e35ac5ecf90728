"""Long work of a request, done in turns with the event loop, so that it holds up no other request.

    at_once ──a pause in it: too much──▶ begun anew in_turns: a slice, rounds of the event loop,
       └─ nearly always: done            a slice, … on a thread that has only the slices

Work calls `pause` wherever it has been at it for a millisecond or so. Under `at_once` that ends
it, and nothing of it has happened; in turns the event loop goes on there when the slice is over.

Why not simply a thread: while it computes, the loop waits up to 5 ms for the interpreter each time
it wants it back, after every wait for the network, and serves two thirds of what it does so. Here
one of the two stands still while the other goes on, and each has as long as the other. So the work
may touch whatever belongs to the event loop and needs no locks; but it must not wait for the loop.

Invariants: the loop never stands still for longer than SLICE_SECONDS and the longest way between
two pauses; of all long requests of a process one is at work (`Turns`), in order of arrival, so that
what is made of a body is in memory once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar, TypeVarTuple

from capture_api.refusal import try_later

SLICE_SECONDS = 0.002
"""What the work has at once, and then the event loop, if it has so much to do."""
IDLE_SECONDS = 0.000_1
"""A round of the event loop that is over sooner had nothing to do."""
AT_ONCE_BYTES = 256 << 10
"""Text that is worked on at once: a millisecond of parsing, and some more of what follows."""
AT_ONCE_EVENTS = 500
"""Events of a text that is worked on at once."""
PATIENCE_SECONDS = 5.0
"""How long a request waits for its turn before it is to come again."""

THREAD_NAME = "long-request"

T = TypeVar("T")
Given = TypeVarTuple("Given")


class TooMuch(Exception):
    """It is too much work to be done at once."""


class _Abandoned(BaseException):
    """Nobody waits any more for the work."""


def _go_on() -> None:
    """What a pause is where nobody else waits: nothing."""


def _give_up() -> None:
    raise TooMuch


_pause: Callable[[], None] = _go_on


def pause() -> None:
    """Let others go on for a while, if it is time. Everywhere but in a request it does nothing."""
    _pause()


def at_once(work: Callable[[*Given], T], *given: *Given) -> T:
    """Do the work, which changes nothing yet. Raises TooMuch where it comes to a pause."""
    global _pause
    _pause = _give_up
    try:
        return work(*given)
    finally:
        _pause = _go_on


async def in_turns(work: Callable[[*Given], T], *given: *Given) -> T:
    """Do the work in turns with the event loop. Given up between two slices when cancelled."""
    slices = _Slices(lambda: work(*given))
    try:
        while slices.next():
            await _let_others_go_on()
    finally:
        slices.end()
    return slices.outcome()


async def _let_others_go_on() -> None:
    now = time.perf_counter()
    end = now + SLICE_SECONDS
    while True:
        before = now
        await asyncio.sleep(0)
        now = time.perf_counter()
        if now >= end or now - before < IDLE_SECONDS:
            return


class Turns:
    """Who may do long work now; one a process. The counters are for metrics."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # first come, first served
        self.taken = 0
        """Turns that somebody has had, or has."""
        self.waiting = 0
        """Requests that wait for their turn, or have it."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn, and have it. Refuses (503) who would wait for too long."""
        self.waiting += 1
        try:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._lock.acquire()
            except TimeoutError:
                raise try_later(
                    "overloaded",
                    "the server has too many large requests to work on: send this one again in a "
                    "moment, or smaller batches",
                ) from None
            self.taken += 1
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self.waiting -= 1


class _Slices(Generic[T]):
    """Work on a thread of its own, which goes on only within `next`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._go = threading.Lock()
        self._rests = threading.Lock()
        self._go.acquire()
        self._rests.acquire()
        self._slice_ends = 0.0
        self._done = self._abandoned = False
        self._result: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def next(self) -> bool:
        """Let the work go on for a slice; whether there is more of it."""
        global _pause
        _pause = self._wait
        self._slice_ends = time.perf_counter() + SLICE_SECONDS
        self._go.release()
        self._rests.acquire()
        _pause = _go_on
        return not self._done

    def end(self) -> None:
        """Have the work end at the pause it is at, if it is not done."""
        self._abandoned = True
        while not self._done:
            self._go.release()
            self._rests.acquire()

    def outcome(self) -> T:
        """What the work gave, or raised. Forgets it: a traceback holds all that the work held."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._result.pop()
        finally:
            del error

    # What follows runs on the thread.

    def _run(self) -> None:
        self._go.acquire()
        work, self._work = self._work, None
        try:
            if work is not None and not self._abandoned:
                self._result.append(work())
        except BaseException as error:
            self._error = error
        del work
        self._done = True
        self._rests.release()

    def _wait(self) -> None:
        if time.perf_counter() < self._slice_ends:
            return
        self._rests.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned
