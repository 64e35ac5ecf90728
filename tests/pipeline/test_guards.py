"""What must not happen although every single step is right: doubles and losses by bad company."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions
from sqlalchemy import delete

from assets.pipeline import key_upkeep
from assets.pipeline.batch import Kind, Range, State
from assets.pipeline.errors import (
    BatchError,
    LedgerBehind,
    LoadingPaused,
    ProofFailed,
    StagedFileDamaged,
)
from assets.pipeline.loading import load_batches
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import retry_batch
from orchestration.ledger.tables import metadata
from tests.records import delete_before
from tests.stack import Stack

NewStack = Callable[..., Stack]


def test_an_older_ledger_plans_nothing(new_stack: NewStack) -> None:
    """A ledger that was lost or restored cannot make the same records be loaded again."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(20))
    stack.run()
    with stack.ledger.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
    with pytest.raises(LedgerBehind, match=r"ClickHouse holds batches up to 20"):
        stage_batches(stack.worker())
    assert stack.batches() == []
    assert Counter(stack._places("events")) == dict.fromkeys(sent, 1)


def test_a_partition_that_is_added_and_expires_unread_is_a_gap(new_stack: NewStack) -> None:
    """Records of a lane that never had a batch are not skipped in silence when they are gone."""
    stack = new_stack().make_topic(1)
    stack.send_numbers(range(4))
    stack.run()
    admin = AdminClient({"bootstrap.servers": stack.kafka})
    admin.create_partitions([NewPartitions(stack.settings.topic, 2)])[stack.settings.topic].result()
    stack.await_partitions(2)
    stack.send_numbers(range(101, 121, 2), partitions=2)
    delete_before(stack.kafka, stack.settings.topic, {1: 6})
    with pytest.raises(BatchError, match=r"1:\[0,6\)"):
        stack.run()
    assert [batch.state for batch in stack.run()] == [
        *(State.COMMITTED, State.GAP, State.COMMITTED)
    ]
    assert [batch.ranges for batch in stack.batches()[1:]] == [
        (Range(1, 0, 6),),
        (Range(1, 6, 10),),
    ]


def test_a_file_that_is_away_is_not_given_up_when_kafka_has_nothing_left(
    new_stack: NewStack,
) -> None:
    """When records are only in a staged file, a lake that is away for a moment loses nothing."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    (batch,) = stage_batches(stack.worker())
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    path = stack.lake_file(file.path)
    away = path.rename(path.with_suffix(".away"))
    delete_before(stack.kafka, stack.settings.topic, {0: 10})
    with pytest.raises(StagedFileDamaged):
        load_batches(stack.worker())
    (waiting,) = stack.batches()
    assert waiting.state is State.GAP
    assert "Nor can it be staged again" in waiting.note
    away.rename(path)
    retry_batch(stack.worker(), batch.batch_id)
    stack.run()
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_what_a_lost_batch_held_may_be_sent_again(new_stack: NewStack) -> None:
    """Events that were staged once and then lost are no originals: their resend is stored."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    (batch,) = stage_batches(stack.worker())
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    stack.lake_file(file.path).unlink()
    with pytest.raises(StagedFileDamaged):
        load_batches(stack.worker())
    delete_before(stack.kafka, stack.settings.topic, {0: 10})
    with pytest.raises(BatchError, match="retention"):
        stack.run()
    again = stack.send_numbers(range(10))
    stack.run()
    assert stack.account().places == dict.fromkeys(again, 1)


def test_rows_that_somebody_deleted_come_back_by_retry(new_stack: NewStack) -> None:
    """The server's memory of an insert does not keep a mended batch from being loaded again."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    (batch,) = stack.run()
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _offset < 5 SETTINGS mutations_sync = 2"
    )
    ledger_says_loading(stack, batch.batch_id)
    with pytest.raises(ProofFailed):
        load_batches(stack.worker())
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE 1 SETTINGS mutations_sync = 2"
    )
    retry_batch(stack.worker(), batch.batch_id)
    stack.run()
    assert stack.account().places == dict.fromkeys(sent, 1)


def ledger_says_loading(stack: Stack, batch_id: str) -> None:
    """As after a crash between the insert and the ledger."""
    with stack.ledger.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE batches SET state = 'loading', loaded_at = NULL, committed_at = NULL, "
            "dead_letters_loaded_at = NULL WHERE batch_id = ?",
            (batch_id,),
        )


def test_a_table_that_lacks_a_column_is_no_batch_s_fault(new_stack: NewStack) -> None:
    """Every batch waits, none is given up, and all go on when the table is as it should be."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(3))
    stage_batches(stack.worker())
    table = f"{stack.database}.events"
    stack.worker().clickhouse.command(f"ALTER TABLE {table} DROP COLUMN sdk")
    for _ in range(4):
        with pytest.raises(LoadingPaused, match="NO_SUCH_COLUMN_IN_TABLE"):
            load_batches(stack.worker())
        assert stack.batches()[0].state is State.LOADING
    stack.client.command(f"ALTER TABLE {table} ADD COLUMN sdk LowCardinality(String)")
    worker = stack.worker()
    worker.insists = True
    load_batches(worker)
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_a_lost_index_and_a_lost_file_do_not_stop_staging(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is made anew from what staged files there are; newer batches go on."""
    stack = new_stack().make_topic()
    for first in (0, 10):
        stack.send_numbers(range(first, first + 10))
        stack.run()
    files = [
        batch.staged.file(Kind.EVENTS) for batch in stack.batches() if batch.staged is not None
    ]
    assert files[0] is not None
    stack.lake_file(files[0].path).unlink()
    for path in stack.lake_file("keys").rglob("*.arrow"):
        path.unlink()
    monkeypatch.setattr(key_upkeep, "KEPT_FOR_READERS_US", 1 << 60)
    stack.send_numbers(range(10, 30))
    newest = stack.run()[-1]
    assert newest.staged is not None
    assert (newest.staged.balance.ok, newest.staged.balance.duplicate) == (10, 10)
