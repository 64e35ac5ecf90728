"""The record of alarms: each begins once, is over once, and is told of both times."""

from __future__ import annotations

from sqlalchemy import Engine

from orchestration.ledger.alarms import (
    last_alarms,
    mark_told,
    note_alarms,
    untold_alarms,
)

A_DAY_US = 86_400 * 1_000_000


def told(ledger: Engine) -> list[tuple[str, bool]]:
    """What is told now, and whether as over."""
    alarms = untold_alarms(ledger, 10)
    mark_told(ledger, alarms)
    return [(alarm.name, alarm.over_at is not None) for alarm in alarms]


def test_an_alarm_is_told_once_when_it_begins_and_once_when_it_is_over(ledger: Engine) -> None:
    """However often it is seen in between, and though its text changes."""
    note_alarms(ledger, {"lag/a": "1 waits"}, 0)
    note_alarms(ledger, {"lag/a": "2 wait", "room": "full"}, 0)
    assert [alarm.text for alarm in untold_alarms(ledger, 10)] == ["2 wait", "full"]
    assert told(ledger) == [("lag/a", False), ("room", False)]
    note_alarms(ledger, {"lag/a": "3 wait", "room": "full"}, 0)
    assert told(ledger) == []
    note_alarms(ledger, {"room": "full"}, 0)
    assert told(ledger) == [("lag/a", True)]
    note_alarms(ledger, {"room": "full", "lag/a": "again"}, 0)
    assert told(ledger) == [("lag/a", False)]
    assert [(alarm.name, alarm.over_at is None) for alarm in last_alarms(ledger, 10)] == [
        ("lag/a", False),
        ("room", True),
        ("lag/a", True),
    ]


def test_what_nobody_was_told_of_stays_untold(ledger: Engine) -> None:
    """Also over its end: then it is told as over, once."""
    note_alarms(ledger, {"room": "full"}, 0)
    assert len(untold_alarms(ledger, 10)) == 1
    assert len(untold_alarms(ledger, 10)) == 1
    note_alarms(ledger, {}, 0)
    assert told(ledger) == [("room", True)]
    assert told(ledger) == []


def test_what_comes_and_goes_is_one_alarm(ledger: Engine) -> None:
    """It is over when it was not seen for a while."""
    note_alarms(ledger, {"room": "full"}, A_DAY_US)
    note_alarms(ledger, {}, A_DAY_US)
    note_alarms(ledger, {"room": "full"}, A_DAY_US)
    assert told(ledger) == [("room", False)]
    assert len(last_alarms(ledger, 10)) == 1


def test_what_cannot_be_judged_is_not_over(ledger: Engine) -> None:
    """While Kafka is away nothing is said of lags; the others go on."""
    note_alarms(ledger, {"lag/a": "waits", "room": "full"}, 0)
    assert len(told(ledger)) == 2
    note_alarms(ledger, {}, 0, lambda name: not name.startswith("lag/"))
    assert told(ledger) == [("room", True)]
