"""Long work in turns with the event loop: who goes on when, what comes out, what stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from capture_api import turns
from capture_api.refusal import Refused
from capture_api.turns import TooMuch, Turns, at_once, in_turns, pause


@pytest.fixture(autouse=True)
def _every_pause_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loop goes on at every pause; and whatever a test does, no thread is left."""
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)
    yield
    for thread in threading.enumerate():
        if thread.name == turns.THREAD_NAME:
            thread.join(5)
            assert not thread.is_alive()
    pause()


def test_a_pause_ends_what_is_done_at_once() -> None:
    """What comes to none is done; and outside of it a pause is nothing."""
    assert at_once(divmod, 7, 2) == (3, 1)
    with pytest.raises(TooMuch):
        at_once(pause)
    with pytest.raises(ZeroDivisionError):
        at_once(divmod, 7, 0)
    pause()


def test_the_loop_goes_on_meanwhile() -> None:
    """The work ends only once a task of the loop has done what it waits for."""
    answered: list[int] = []

    def work() -> list[int]:
        while len(answered) < 100:
            pause()
        return answered.copy()

    async def answer() -> None:
        for number in range(100):
            await asyncio.sleep(0)
            answered.append(number)

    async def main() -> list[int]:
        answering = asyncio.create_task(answer())
        result = await in_turns(work)
        await answering
        return result

    assert asyncio.run(main()) == list(range(100))


def test_the_loop_stands_still_between_pauses() -> None:
    """So the work needs no locks: nothing that it touches changes under its hands."""
    seen = 0
    torn = False

    def work() -> None:
        nonlocal torn
        for _ in range(50):
            before = seen
            for _ in range(1000):
                torn = torn or seen != before
            pause()

    async def count() -> None:
        nonlocal seen
        while True:
            seen += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count())
        await in_turns(work)
        counting.cancel()

    asyncio.run(main())
    assert not torn
    assert seen >= 50


def test_several_take_turns() -> None:
    """Each has its own slices."""
    order: list[str] = []

    def work(name: str) -> str:
        for _ in range(3):
            order.append(name)
            pause()
        return name

    async def main() -> list[str]:
        return list(await asyncio.gather(in_turns(work, "a"), in_turns(work, "b")))

    assert asyncio.run(main()) == ["a", "b"]
    assert order == ["a", "b"] * 3


class Held:
    """Something large that work holds."""


@pytest.mark.parametrize("error", [None, Refused(413, "too_large", "x"), MemoryError()])
def test_what_comes_out_and_nothing_else_stays(error: Exception | None) -> None:
    """Result or error; what the work had in its hands is freed without a search for garbage."""
    left: list[weakref.ref[Held]] = []

    def work(given: Held) -> str:
        own = Held()
        left.extend((weakref.ref(given), weakref.ref(own)))
        pause()
        if error is not None:
            raise error
        return "done"

    async def main() -> str:
        if error is None:
            return await in_turns(work, Held())
        with pytest.raises(type(error)) as raised:
            await in_turns(work, Held())
        assert raised.value is error
        error.__traceback__ = None
        del raised
        return "raised"

    gc.disable()
    try:
        assert asyncio.run(main()) == ("done" if error is None else "raised")
        assert [held() for held in left] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("pauses", [0, 1, 5])
def test_cancelled_work_ends_at_its_pause(pauses: int) -> None:
    """It is unwound there, and does nothing more; also when it has not begun."""
    steps: list[str] = []

    def work() -> None:
        try:
            while True:
                steps.append("step")
                pause()
        finally:
            pause()
            steps.append("unwound")

    async def main() -> None:
        task = asyncio.create_task(in_turns(work))
        while len(steps) < pauses:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(main())
    assert steps[pauses:] in ([], ["unwound"])
    assert steps.count("step") == pauses


def test_one_at_a_time_in_order_of_arrival() -> None:
    """Whoever comes first goes first, and alone; the rest wait."""
    order: list[str] = []

    def work(name: str) -> None:
        order.append(f"{name} begins")
        pause()
        order.append(f"{name} ends")

    async def main() -> None:
        all_turns = Turns()

        async def request(name: str) -> None:
            async with all_turns.turn():
                await in_turns(work, name)

        tasks = [asyncio.create_task(request(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert all_turns.waiting == 3
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert (all_turns.waiting, all_turns.taken) == (0, 2)

    asyncio.run(main())
    assert order == ["a begins", "a ends", "c begins", "c ends"]


def test_a_turn_that_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 503; the one that has it goes on, and the next gets it."""
    monkeypatch.setattr(turns, "PATIENCE_SECONDS", 0.01)

    async def main() -> None:
        all_turns = Turns()
        async with all_turns.turn():
            with pytest.raises(Refused) as refused:
                async with all_turns.turn():
                    pass
            assert (refused.value.status, refused.value.retry_after) == (503, 1)
            assert all_turns.waiting == 1
        async with all_turns.turn():
            pass
        assert all_turns.waiting == 0

    asyncio.run(main())
