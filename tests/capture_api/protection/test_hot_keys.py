"""Hot keys: found when they are, and only they."""

from __future__ import annotations

from capture_api.protection.hot_keys import WINDOW_SECONDS, HotKeys


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_gets_hot_and_stays_so_for_a_window() -> None:
    """Past the limit it is hot, in the next window from its first event, then no more."""
    clock = Clock()
    keys = HotKeys(10, clock)
    limit = int(10 * WINDOW_SECONDS)
    hot = [keys.is_hot(b"k") for _ in range(3 * limit)]
    assert not any(hot[:limit])
    assert all(hot[limit:])
    clock.now += WINDOW_SECONDS
    keys.turn_window()
    assert keys.is_hot(b"k")
    assert not keys.is_hot(b"another")
    clock.now += WINDOW_SECONDS
    keys.turn_window()
    assert not keys.is_hot(b"k")


def test_a_key_that_stays_hot_is_hot_without_a_break() -> None:
    """As long as its events keep coming beyond the limit, no window lets it back."""
    clock = Clock()
    keys = HotKeys(10, clock)
    for _ in range(500):
        keys.is_hot(b"k")
    for _ in range(5):
        clock.now += WINDOW_SECONDS
        keys.turn_window()
        assert all(keys.is_hot(b"k") for _ in range(500))


def test_many_quiet_keys_are_never_hot() -> None:
    """A hundred thousand persons with a few events each share cells, and none is blamed."""
    keys = HotKeys(1, Clock())
    assert not any(keys.is_hot(b"person-%d" % n) for n in range(100_000) for _ in range(2))


def test_neighbours_of_a_hot_key_are_not_blamed() -> None:
    """Beside one hot key, everybody else stays where they are."""
    keys = HotKeys(1, Clock())
    for number in range(20_000):
        keys.is_hot(b"hot")
        assert not keys.is_hot(b"person-%d" % number)
    assert keys.is_hot(b"hot")


def test_a_key_that_cools_down_below_the_limit_goes_back() -> None:
    """Hot once, it is judged by the limit again, however many its events are short of that."""
    clock = Clock()
    keys = HotKeys(10, clock)
    for turn in range(3):
        hot = [keys.is_hot(b"k") for _ in range(101 if turn == 0 else 90)]
        assert hot == ([False] * 100 + [True], [True] * 90, [False] * 90)[turn]
        clock.now += WINDOW_SECONDS
        keys.turn_window()


def test_a_pause_ends_it() -> None:
    """After a window in which nothing came, nothing is hot."""
    clock = Clock()
    keys = HotKeys(1, clock)
    for _ in range(100):
        keys.is_hot(b"k")
    clock.now += 2 * WINDOW_SECONDS
    keys.turn_window()
    assert not keys.is_hot(b"k")
