"""A ledger of an older version is brought up to date when it is opened."""

from __future__ import annotations

from sqlalchemy import Engine, inspect

from assets.pipeline.batch import Range, State
from orchestration.ledger.backoffs import backoffs_now
from orchestration.ledger.batches import all_batches, give_back, read_batch, record_plan, set_state
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.keys import live_key_files
from orchestration.ledger.leases import held_lease
from orchestration.ledger.tables import attempts, backoffs, batches
from tests.staging import DAY, batch_of


def test_columns_and_tables_that_came_later_are_added(ledger: Engine, ledger_url: str) -> None:
    """Opening it once more changes nothing."""
    with ledger.begin() as connection:
        for column in ("error_code", "remedy", "next_try_at"):
            connection.exec_driver_sql(f"ALTER TABLE attempts DROP COLUMN {column}")
        backoffs.drop(connection)
        connection.exec_driver_sql("DROP INDEX staged_files_marked")
        for table in ("staged_files", "key_files"):
            for column in ("let_go_at", "deleted_at"):
                connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.exec_driver_sql("ALTER TABLE batches DROP COLUMN rows_let_go_at")
        connection.exec_driver_sql("DROP INDEX redrive_letters_by_old_batch")
    for _ in range(2):
        again = open_ledger(ledger_url)
        with again.connect() as connection:
            assert connection.execute(attempts.select()).all() == []
        assert backoffs_now(again) == {}
        assert (all_batches(again, "events"), live_key_files(again, DAY, DAY)) == ([], [])
        found = {index["name"] for index in inspect(again).get_indexes("redrive_letters")}
        assert found == {"redrive_letters_by_place", "redrive_letters_by_old_batch"}
        again.dispose()


def test_batches_of_an_older_version_can_be_read_and_retried(
    ledger: Engine, ledger_url: str
) -> None:
    """What came later is nothing yet in older rows, however the columns were added to them."""
    came_later = ("timings", "retries", "note")
    with held_lease(ledger, "topic/events", 60) as lease:
        old = batch_of(Range(0, 0, 3))
        record_plan(ledger, lease, old)
    for is_added in (False, True):  # and the second time as once, without their defaults
        with ledger.begin() as connection:
            for name in came_later:
                connection.exec_driver_sql(f"ALTER TABLE batches DROP COLUMN {name}")
                if is_added:
                    kind = batches.c[name].type.compile(ledger.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE batches ADD COLUMN {name} {kind}")
        again = open_ledger(ledger_url)
        with held_lease(again, "topic/events", 60) as lease:
            new = batch_of(Range(1, 3 * is_added, 3 + 3 * is_added))
            record_plan(again, lease, new)
            for batch in (old, new):
                read = read_batch(again, batch.batch_id)
                assert (read.timings, read.retries, read.note) == ({}, 0, "")
                set_state(again, lease, batch.batch_id, State.FAILED, "why")
                give_back(again, lease, batch.batch_id, State.FAILED, State.PLANNED)
                assert read_batch(again, batch.batch_id).retries == 1
        again.dispose()


def test_a_lease_has_room_for_the_longest_name_of_a_topic(ledger: Engine, ledger_url: str) -> None:
    """In an older ledger, too."""
    if ledger.dialect.name == "postgresql":
        with ledger.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE leases ALTER COLUMN name TYPE VARCHAR(200)")
    again = open_ledger(ledger_url)
    with held_lease(again, f"topic/{'t' * 249}", 60) as lease:
        assert lease.fence == 1
    again.dispose()
