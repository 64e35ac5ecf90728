"""Daily usage: what several add is summed per project and UTC day."""

from __future__ import annotations

import threading
from datetime import date

from sqlalchemy import Engine

from orchestration.ledger.usage import add_usage, usage_of

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)


def test_additions_of_a_day_are_summed(ledger: Engine) -> None:
    """Adding answers with the totals of those projects; another day starts from nothing."""
    assert add_usage(ledger, DAY, {1: 5, 2: 7}) == {1: 5, 2: 7}
    assert add_usage(ledger, DAY, {1: 1 << 40, 0: 3}) == {1: (1 << 40) + 5, 0: 3}
    assert add_usage(ledger, DAY, {}) == {}
    assert add_usage(ledger, NEXT, {1: 2}) == {1: 2}
    assert usage_of(ledger, DAY) == {0: 3, 1: (1 << 40) + 5, 2: 7}
    assert usage_of(ledger, NEXT) == {1: 2}
    assert usage_of(ledger, date(2026, 3, 3)) == {}


def test_nothing_is_lost_when_many_add_at_once(ledger: Engine) -> None:
    """Writers that name the same projects in any order neither lose an event nor block."""
    forwards = {1: 1, 2: 10, 3: 100}
    backwards = dict(reversed(forwards.items()))

    def add(counts: dict[int, int]) -> None:
        for _ in range(10):
            add_usage(ledger, DAY, counts)

    threads = [threading.Thread(target=add, args=(c,)) for c in (forwards, backwards) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert usage_of(ledger, DAY) == {1: 60, 2: 600, 3: 6000}
