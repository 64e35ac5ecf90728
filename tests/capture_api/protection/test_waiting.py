"""Turns of those who were refused: whom each is behind, how long a line gets, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture_api.protection import waiting
from capture_api.protection.waiting import LONGEST_SECONDS, SHARE, SPREAD_SECONDS, Waiting
from tests.capture_api.protection.many_clients import Clock

RATE = 100 / SHARE
"""At this rate a turn of 100 takes a second."""


def line(clock: Clock, shared: bool = False) -> Waiting:
    """Lines on this clock, whose chance is the least it can be."""
    return Waiting("test", shared, clock, lambda least, most: least)


def test_each_is_told_to_come_behind_those_before_it() -> None:
    """By what they bring; another key has a line of its own."""
    of = line(Clock())
    assert [of.turn("a", 100, RATE, 0.5) for _ in range(4)] == [1, 2, 3, 4]
    assert of.turn("a", 450, RATE, 0.5) == 5
    assert of.turn("a", 1, RATE, 0.5) == 9
    assert of.turn("b", 1, RATE, 0.5) == 1


def test_a_line_grows_shorter_by_itself() -> None:
    """After a quiet time who is refused hears one second, as the first did."""
    clock = Clock()
    of = line(clock)
    assert [of.turn("a", 1000, RATE, 0.1) for _ in range(2)] == [1, 11]
    clock.now += 15
    assert of.turn("a", 0, RATE, 0.1) == 6
    clock.now += 6
    assert of.turn("a", 0, RATE, 0.1) == 1


def test_nobody_is_told_to_come_before_the_bucket_lets_it_in() -> None:
    """As after a batch far beyond the burst, which is still being paid off."""
    clock = Clock()
    of = line(clock)
    assert of.turn("a", 100, RATE, 12.3) == 13
    assert of.turn("a", 100, RATE, 12.3) == 14
    clock.now += 20
    assert of.turn("a", 100, RATE, 7.0) == 7


def test_a_line_is_never_longer_than_the_longest() -> None:
    """However much is refused: who finds it full is told so, and what was refused is forgotten."""
    clock = Clock()
    of = line(clock)
    told = [of.turn("a", 100, RATE, 0.5) for _ in range(1000)]
    assert told == [*range(1, LONGEST_SECONDS), *[LONGEST_SECONDS - SPREAD_SECONDS] * 971]
    clock.now += LONGEST_SECONDS
    assert of.turn("a", 1e9, RATE, 0.5) == 1
    clock.now += LONGEST_SECONDS
    assert of.turn("a", 100, RATE, 0.5) == 1
    assert of.turn("a", 100, RATE, 1e9) == LONGEST_SECONDS - SPREAD_SECONDS


def test_those_without_a_turn_come_back_one_by_one() -> None:
    """Rather than all at the same second."""
    of = Waiting("test", clock=Clock())
    told = {of.turn("a", 100, RATE, 0.5) for _ in range(1000)}
    assert told == set(range(1, LONGEST_SECONDS + 1))


def test_who_does_not_come_back_takes_up_no_place() -> None:
    """It is told the truth all the same."""
    of = line(Clock())
    assert [of.turn("a", 100, RATE, 0.5, comes_back=False) for _ in range(3)] == [1, 1, 1]
    assert len(of) == 0
    assert [of.turn("a", 250, RATE, 0.5) for _ in range(2)] == [1, 3]
    assert [of.turn("a", 100, RATE, 0.5, comes_back=False) for _ in range(3)] == [6, 6, 6]


def test_those_who_wait_elsewhere_make_a_line_longer() -> None:
    """What replicas tell is what was given a turn; of keys unknown here nothing is kept."""
    clock = Clock()
    one, other = line(clock, shared=True), line(clock, shared=True)
    assert one.turn("a", 200, RATE, 0.5) == 1
    assert other.turn("a", 100, RATE, 0.5) == 1
    one.turn("a", 100, RATE, 0.5, comes_back=False)
    assert (one.taken, other.taken) == ({"a": 200}, {"a": 100})
    one.drain("a", 100)
    other.drain("a", 200)
    assert one.turn("a", 0, RATE, 0.5) == other.turn("a", 0, RATE, 0.5) == 4
    one.drain("a", 1e9)
    one.drain("b", 1)
    assert one.turn("a", 0, RATE, 0.5) == LONGEST_SECONDS - SPREAD_SECONDS
    assert len(one) == 1


def test_turns_of_others_that_are_over_make_no_line_longer() -> None:
    """What came while nobody waited here is taken off, once; what still waits elsewhere is not."""
    clock = Clock()
    of = line(clock, shared=True)
    assert of.turn("a", 1000, RATE, 0.1) == 1
    clock.now += 5
    of.drain("a", 700)  # in the five seconds the line here was never at its end
    assert of.turn("a", 0, RATE, 0.1) == 13

    clock.now += 112
    assert [of.turn("a", 100, RATE, 0.1) for _ in range(2)] == [1, 2]
    of.drain("a", 5000)  # turns of the first fifty seconds
    assert of.turn("a", 0, RATE, 0.1) == 3
    of.drain("a", 500)
    assert of.turn("a", 0, RATE, 0.1) == 8

    clock.now += 10
    of.drain("a", 500)  # what nearly three seconds let in of it is over
    assert of.turn("a", 0, RATE, 0.1) == 3


@pytest.mark.parametrize("pause", [0.0, 0.01, 1.0])
def test_memory_is_bounded(pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys are refused; and it is not looked for ended lines at each of them."""
    monkeypatch.setattr(waiting, "MAX_KEYS", 100)
    looked = []
    forget = Waiting._forget
    monkeypatch.setattr(Waiting, "_forget", lambda of, now: (looked.append(now), forget(of, now)))
    clock = Clock()
    of = line(clock)
    for number in range(1_000):
        clock.now += pause
        of.turn(str(number), 1000, RATE, 0.5)
        assert len(of) <= 100
    assert len(looked) <= 1_000 / 50


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 1e5), st.floats(1e-3, 100), st.booleans()),
        max_size=60,
    ),
    st.floats(1e-2, 1e5),
)
def test_whatever_is_refused(steps: list[tuple[float, float, float, bool]], rate: float) -> None:
    """It is told whole seconds from one to the longest, and not to come too soon."""
    clock = Clock()
    of = Waiting("test", clock=clock)
    for pause, amount, soonest, comes_back in steps:
        clock.now += pause
        told = of.turn("a", amount, rate, soonest, comes_back)
        assert 1 <= told <= LONGEST_SECONDS
        assert told >= min(soonest, LONGEST_SECONDS - SPREAD_SECONDS)
