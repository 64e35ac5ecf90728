"""Token buckets: what passes, what waits and how long, and that memory stays bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture_api.protection import buckets
from capture_api.protection.buckets import Buckets, retry_after


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_the_rate() -> None:
    """A full bucket gives its burst at once, then one a tenth of a second at ten a second."""
    clock = Clock()
    of = Buckets("test", clock=clock)
    assert [of.take("a", 1, 10, 5) == 0 for _ in range(7)] == [True] * 5 + [False] * 2
    clock.now += 0.25
    assert [of.take("a", 1, 10, 5) == 0 for _ in range(3)] == [True, True, False]
    assert of.take("b", 1, 10, 5) == 0, "another key has its own bucket"


def test_a_batch_beyond_the_burst_passes_once_and_is_paid_off() -> None:
    """More than a bucket holds is let in whole, and the next ones wait until it is made up for."""
    clock = Clock()
    of = Buckets("test", clock=clock)
    assert of.take("a", 100, 10, 20) == 0
    assert of.take("a", 1, 10, 20) == pytest.approx(8.1)
    clock.now += 8.2
    assert of.take("a", 1, 10, 20) == 0


def test_what_others_take_is_missing_here() -> None:
    """Takings of other replicas drain the bucket; what ran over here meanwhile was theirs."""
    clock = Clock()
    of = Buckets("test", clock=clock)
    of.take("a", 1, 10, 20)
    of.drain("a", 0)
    of.drain("a", 30)
    assert of.take("a", 1, 10, 20) == pytest.approx(1.2)
    of.take("b", 1, 10, 20)
    of.drain("b", 0)
    clock.now += 60
    of.take("b", 1, 10, 20)
    of.drain("b", 600)
    assert of.take("b", 1, 10, 20) == 0
    of.drain("unknown", 5)
    assert len(of) == 2


def test_what_ran_over_is_credited_once() -> None:
    """A key that lay idle for long before the others began has its credit for one drain only."""
    clock = Clock()
    of = Buckets("test", clock=clock)
    of.take("a", 1, 10, 20)
    clock.now += 600
    of.take("a", 1, 10, 20)
    of.drain("a", 0)
    of.drain("a", 100)
    assert of.take("a", 1, 10, 20) == pytest.approx(8.2)


def test_others_never_lock_a_key_out_for_long() -> None:
    """What others took is a debt of a minute, or of a burst, at the most."""
    clock = Clock()
    of = Buckets("test", clock=clock)
    of.take("a", 1, 10, 20)
    of.drain("a", 0)
    of.drain("a", 1e9)
    assert of.take("a", 1, 10, 20) == pytest.approx(60.1)


@pytest.mark.parametrize("pause", [0.2, 3.0, 5.0, 30.0])
def test_replicas_together_let_the_rate_through(pause: float) -> None:
    """However seldom each meets the key: two that are always asked let one rate and burst pass."""
    rate, burst, turns = 10.0, 100.0, 400
    clock = Clock()
    replicas = [Buckets("test", clock=clock) for _ in range(2)]
    untold = [0.0, 0.0]
    passed = 0.0
    for _ in range(turns):
        for number, of in enumerate(replicas):
            clock.now += pause / 2
            took = 0.0
            while took < 4 * rate * pause and of.take("a", 1, rate, burst) == 0:
                took += 1
            passed += took
            untold[1 - number] += took
            if took:
                of.drain("a", untold[number])
                untold[number] = 0.0
    assert passed <= 1.05 * rate * pause * turns + 4 * burst


def test_full_buckets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys come by, no more than the limit are kept."""
    monkeypatch.setattr(buckets, "MAX_KEYS", 100)
    clock = Clock()
    of = Buckets("test", clock=clock)
    for number in range(1_000):
        clock.now += 0.01
        of.take(str(number), 1, 10, 5)
        assert len(of) <= 100
    for number in range(1_000):
        of.take(f"at once {number}", 100, 10, 5)
        assert len(of) <= 100


def test_what_was_taken_is_noted_for_others() -> None:
    """Where replicas share, each taking is noted, and a refused one is not."""
    of = Buckets("test", shared=True, clock=Clock())
    for _ in range(4):
        of.take("a", 2, 1, 3)
    assert of.taken == {"a": 4}


@pytest.mark.parametrize(("seconds", "whole"), [(0.001, 1), (1.0, 1), (1.2, 2), (30.0, 30)])
def test_retry_after_is_whole_seconds(seconds: float, whole: int) -> None:
    """At least one, and never too few."""
    assert retry_after(seconds) == whole


@given(
    rate=st.floats(0.1, 1e4),
    burst=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 50)), max_size=60),
)
def test_over_time_no_more_than_rate_and_burst_passes(
    rate: float, burst: int, steps: list[tuple[float, int]]
) -> None:
    """Whatever comes when: burst + rate × time + the one batch that may overdraw."""
    clock = Clock()
    of = Buckets("test", clock=clock)
    passed, start = 0, clock.now
    for pause, amount in steps:
        clock.now += pause
        if of.take("a", amount, rate, burst) == 0:
            passed += amount
        assert passed <= burst + rate * (clock.now - start) + 50 + 1e-6
