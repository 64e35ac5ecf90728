"""Back-offs: what fails is known to the next process, and forgotten when it goes well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from assets.pipeline.errors import ClickHouseAway, LeaseLost
from orchestration.ledger.backoffs import backoffs_now, forget_failures, note_failure
from orchestration.ledger.connection import now_us
from orchestration.ledger.leases import Lease, held_lease
from orchestration.ledger.tables import backoffs

ERROR = ClickHouseAway("Code: 252. too many parts", 252)


@pytest.fixture
def lease(ledger: Engine) -> Iterator[Lease]:
    """A lease that is ours."""
    with held_lease(ledger, "topic/events", 60) as lease:
        yield lease


def test_failures_in_a_row_are_counted_until_it_goes_well(ledger: Engine, lease: Lease) -> None:
    """The first time stays, the wait follows the count, and other names are other things."""
    noted = [note_failure(ledger, lease, "one", ERROR, lambda n: n * 1_000_000) for _ in range(3)]
    other = note_failure(ledger, lease, "other", ERROR, lambda n: 0, at_least=4)
    assert [one.failures for one in noted] == [1, 2, 3]
    assert {one.since for one in noted} == {noted[0].failed_at}
    assert [one.next_try_at - one.failed_at for one in noted] == [1_000_000, 2_000_000, 3_000_000]
    assert other.failures == 4
    assert backoffs_now(ledger) == {"one": noted[2], "other": other}
    assert (noted[2].error_code, noted[2].error_text) == (252, str(ERROR))
    forget_failures(ledger, lease, ["one", "never failed"])
    assert backoffs_now(ledger) == {"other": other}


def test_a_replaced_worker_notes_nothing(ledger: Engine) -> None:
    """Neither failures nor their end are taken from a worker whose lease is gone."""
    gone = Lease("topic/events", 0)
    with held_lease(ledger, "topic/events", 60) as lease:
        note_failure(ledger, lease, "one", ERROR, lambda n: 0)
    known = backoffs_now(ledger)
    with pytest.raises(LeaseLost):
        note_failure(ledger, gone, "one", ERROR, lambda n: 0)
    with pytest.raises(LeaseLost):
        forget_failures(ledger, gone, ["one"])
    assert backoffs_now(ledger) == known


def test_what_a_clock_that_was_ahead_has_noted_is_due(ledger: Engine, lease: Lease) -> None:
    """It is not waited for until then, and counts on; a host a little ahead is believed."""
    note_failure(ledger, lease, "wrong", ERROR, lambda n: 1_000_000)
    noted = note_failure(ledger, lease, "other host", ERROR, lambda n: 1_000_000)
    year, seconds = 365 * 86_400_000_000, 20_000_000
    with ledger.begin() as connection:
        for name, ahead in (("wrong", year), ("other host", seconds)):
            connection.execute(
                backoffs.update()
                .where(backoffs.c.name == name)
                .values(
                    since=noted.since + ahead,
                    failed_at=noted.failed_at + ahead,
                    next_try_at=noted.next_try_at + ahead,
                )
            )
    known = backoffs_now(ledger)
    assert known["wrong"].next_try_at <= now_us()
    assert known["other host"].next_try_at == noted.next_try_at + seconds
    again = note_failure(ledger, lease, "wrong", ERROR, lambda n: 1_000_000)
    assert again.failures == 2
    assert again.since <= again.failed_at <= now_us()
