"""Freshness: a record may wait for its next tick, however far that is, and for a while besides."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from orchestration.cadence import Cadence
from orchestration.freshness import Oldest, oldest_of
from orchestration.settings import Settings
from orchestration.standing import LaneStanding, TopicStanding

FRIDAY = datetime(2026, 11, 27, 4, 0, tzinfo=UTC)
WEEKDAYS = "0 4 * * MON-FRI"


def us(at: datetime) -> int:
    """As the ledger has it."""
    return int(at.timestamp() * 1_000_000)


@pytest.mark.parametrize(
    ("cadence", "seconds"),
    [("30s", 30), ("1m", 60), ("1h", 3_600), (WEEKDAYS, 3 * 86_400)],
)
def test_the_next_tick(cadence: str, seconds: int) -> None:
    """Of an interval and of cron, whatever days it leaves out."""
    assert Cadence(cadence).next_tick(FRIDAY) == FRIDAY + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("cadence", "waited", "is_late"),
    [
        ("30s", timedelta(seconds=930), False),
        ("30s", timedelta(seconds=931), True),
        # What came after Friday's tick waits for Monday's, and is late some time after that.
        (WEEKDAYS, timedelta(days=3, seconds=899), False),
        (WEEKDAYS, timedelta(days=3, seconds=901), True),
    ],
)
def test_the_limit_follows_the_cadence(
    settings: Callable[..., Settings], cadence: str, waited: timedelta, is_late: bool
) -> None:
    """The next tick after the record, and the seconds of the setting after that."""
    made = settings(cadence=cadence, alarm_oldest_seconds=900)
    lane = LaneStanding(3, 0, 5, 5, 9, 9, oldest_at=us(FRIDAY))
    found = oldest_of(made, TopicStanding("events", us(FRIDAY + waited), "id", (lane,)))
    assert found is not None
    assert (found.partition, found.waited) == (3, int(waited.total_seconds() * 1e6))
    assert found.is_late is is_late


def test_what_has_no_limit_is_never_late(settings: Callable[..., Settings]) -> None:
    """With the setting at 0 the age is told all the same."""
    lane = LaneStanding(0, 0, 5, 5, 9, 9, oldest_at=us(FRIDAY))
    seen = TopicStanding("events", us(FRIDAY + timedelta(days=30)), "id", (lane,))
    found = oldest_of(settings(alarm_oldest_seconds=0), seen)
    assert found is not None
    assert (found.may_wait, found.is_late) == (None, False)


def test_what_waits_for_a_person_can_be_passed_over(settings: Callable[..., Settings]) -> None:
    """Then what comes after it counts; of a bound only the day is known, which counts nothing."""
    later = FRIDAY + timedelta(minutes=5)
    lanes = (
        LaneStanding(
            *(0, 0, 5, 9, 9, 9),
            oldest_at=us(FRIDAY),
            waits_for_a_person=True,
            due_from=7,
            due_at=us(later),
        ),
        LaneStanding(1, 0, 5, 9, 9, 9, oldest_at=us(FRIDAY - timedelta(days=1)), is_bound=True),
        LaneStanding(2, 0, 9, 9, 9, 9, is_complete=True),
    )
    seen = TopicStanding("events", us(FRIDAY + timedelta(hours=1)), "id", lanes)

    def at(found: Oldest | None) -> tuple[int, int] | None:
        return found and (found.partition, found.at)

    assert at(oldest_of(settings(), seen)) == (0, us(FRIDAY))
    assert at(oldest_of(settings(), seen, past_waiting=True)) == (0, us(later))
    nothing = TopicStanding("events", seen.seen_at, "id", lanes[1:])
    assert oldest_of(settings(), nothing) is None
