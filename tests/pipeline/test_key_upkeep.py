"""The duplicate index over time: few files, none forgotten, none left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from assets.pipeline import worker as worker_module
from assets.pipeline.batch import KeyFile
from assets.pipeline.worker import stage_batches
from orchestration.ledger.keys import live_key_files, retired_key_files
from tests.stack import Stack


def files_of(stack: Stack) -> list[KeyFile]:
    """The live files of the index."""
    (day,) = {batch.arrival_date for batch in stack.batches()}
    return live_key_files(stack.ledger, day, day)


def test_many_small_batches_leave_few_key_files(
    new_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are merged, still find duplicates, and those merged away are deleted in the end."""
    stack = new_stack(batch_max_records=1).make_topic()
    stack.send_numbers(range(20))
    stage_batches(stack.worker())
    stack.send_numbers(range(20, 25))
    stage_batches(stack.worker())
    live = files_of(stack)
    assert sum(file.rows for file in live) == 25
    assert len(live) < 20

    stack.send_numbers(range(25))  # the same uuids again
    monkeypatch.setattr(worker_module, "_KEPT_FOR_READERS_US", 0)
    stage_batches(stack.worker())
    again = [batch for batch in stack.batches() if batch.staged and batch.staged.balance.duplicate]
    assert len(again) == 25
    assert retired_key_files(stack.ledger, 1 << 62) == []
    on_disk = {path.name for path in stack.lake_file("keys").rglob("*.arrow")}
    assert on_disk == {file.path.rpartition("/")[2] for file in files_of(stack)}
