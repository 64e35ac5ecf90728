"""Partitions: one for each arrival date, the UTC day on which the broker appended the records."""

from __future__ import annotations

from datetime import UTC, date, datetime

from dagster import DailyPartitionsDefinition

FIRST_ARRIVAL_DATE = date(2026, 1, 1)

arrival_dates = DailyPartitionsDefinition(
    start_date=FIRST_ARRIVAL_DATE.isoformat(),
    end_offset=1,  # today is a partition while it still fills
)


def partition_of(arrival_date: date) -> str:
    """The partition that stands for an arrival date.

    A date out of range (older records of a topic that was there before, or a broker whose clock is
    ahead) is shown under the nearest partition there is: its records are carried all the same.
    """
    today = datetime.now(UTC).date()
    return min(max(arrival_date, FIRST_ARRIVAL_DATE), today).isoformat()
