"""The duplicate index over time: few files, none forgotten, none left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from assets.pipeline import key_upkeep, validate
from assets.pipeline.batch import Balance, KeyFile, Kind
from assets.pipeline.errors import Gap, StagedFileDamaged
from assets.pipeline.lake import Lake
from assets.pipeline.loading import load_batches
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import accept_gap
from orchestration.ledger.gaps import all_gaps
from orchestration.ledger.keys import live_key_files, retired_key_files
from orchestration.ledger.tables import staged_files
from tests.records import delete_before
from tests.stack import Stack, cannot_be_read


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
    monkeypatch.setattr(key_upkeep, "KEPT_FOR_READERS_US", 0)
    stage_batches(stack.worker())
    again = [batch for batch in stack.batches() if batch.staged and batch.staged.balance.duplicate]
    assert len(again) == 25
    assert retired_key_files(stack.ledger, 1 << 62) == []
    on_disk = {path.name for path in stack.lake_file("keys").rglob("*.arrow")}
    assert on_disk == {file.path.rpartition("/")[2] for file in files_of(stack)}


@pytest.mark.parametrize("damage", ["gone", "cut", "refused"])
def test_a_lost_key_file_is_made_anew(new_stack: Callable[..., Stack], damage: str) -> None:
    """Duplicates are still found after a file of the index was lost, and staging goes on."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    (first,) = stage_batches(stack.worker())
    (lost,) = files_of(stack)
    path = stack.lake_file(lost.path)
    if damage == "gone":
        path.unlink()
    elif damage == "refused":
        cannot_be_read(path)
    else:
        path.write_bytes(path.read_bytes()[:-50])
    stack.send_numbers(range(5, 15))
    (second,) = stage_batches(stack.worker())
    assert second.staged is not None
    assert (second.staged.balance.ok, second.staged.balance.duplicate) == (5, 5)
    (duplicates,) = [file for file in second.staged.files if file.kind is Kind.DUPLICATES]
    firsts = pq.read_table(stack.lake_file(duplicates.path))
    assert set(firsts.column("first_batch_id").to_pylist()) == {first.batch_id}
    assert sorted(firsts.column("first_offset").to_pylist()) == [5, 6, 7, 8, 9]


def test_what_a_batch_held_before_it_was_staged_again_is_no_original(
    new_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events lost to a damaged file and Kafka's retention, or rejected by the code of now, are
    stored when they are sent again; events of a loaded batch without a file stay known."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(100, 110))
    [loaded] = stack.run()
    stack.send_numbers(range(10))
    *_, staged = stage_batches(stack.worker())
    monkeypatch.setattr(key_upkeep, "files_to_merge", lambda files: [path for path, _ in files])
    key_upkeep.keep_index(stack.ledger, Lake(stack.settings.lake), [staged.arrival_date])
    monkeypatch.undo()
    assert len(files_of(stack)) == 1
    for batch in (loaded, staged):
        assert batch.staged is not None
        stack.lake_file(
            f"events/arrival_date={batch.arrival_date}/{batch.batch_id}.parquet"
        ).unlink()

    stack.send_numbers([0, 1, 5])
    [resent] = stage_batches(stack.worker())
    with pytest.raises(StagedFileDamaged):
        load_batches(stack.worker())
    delete_before(stack.kafka, stack.settings.topic, {0: 13})
    with pytest.raises(Gap):
        stage_batches(stack.worker())
    [gap] = all_gaps(stack.ledger, stack.settings.topic)
    accepted = accept_gap(stack.worker(), gap.gap_id, "too late")
    assert f"2 in batch {resent.batch_id}" in accepted.note
    with monkeypatch.context() as patched:
        patched.setattr(validate, "RECORD_VERSION", 3)
        stage_batches(stack.worker())
    stack.send_numbers([*range(10), *range(100, 110)])
    [newest] = stage_batches(stack.worker())
    assert newest.staged is not None
    assert newest.staged.balance == Balance(ok=10, duplicate=10)

    [own] = [file for file in files_of(stack) if newest.batch_id in file.path]
    stack.lake_file(own.path).unlink()  # the index is made anew
    stack.send_numbers([*range(10), *range(100, 110)])
    [newest] = stage_batches(stack.worker())
    assert newest.staged is not None
    assert newest.staged.balance == Balance(duplicate=20)


@pytest.mark.parametrize("by_now", ["let go", "another"])
@pytest.mark.parametrize("is_checked", [False, True])
def test_a_file_that_goes_while_the_index_is_made_anew_costs_no_key(
    new_stack: Callable[..., Stack],
    monkeypatch: pytest.MonkeyPatch,
    by_now: str,
    is_checked: bool,
) -> None:
    """Housekeeping lets go of it, or a re-enrich's file takes its place: what counts by now is
    read, before its check and after."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    [batch] = stack.run()
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None

    def goes() -> None:
        path = stack.lake_file(file.path)
        if by_now == "let go":
            values: dict[str, Any] = {"let_go_at": 1}
            path.unlink()
        else:
            values = {"path": f"{file.path}-r1"}
            path.rename(f"{path}-r1")
        with stack.ledger.begin() as connection:
            connection.execute(
                update(staged_files).where(staged_files.c.path == file.path).values(values)
            )

    name = "check_staged" if is_checked else "staged_of_date"
    before = getattr(key_upkeep, name)

    def then_goes(*given: Any) -> Any:
        monkeypatch.undo()
        found = before(*given)
        goes()
        return found

    monkeypatch.setattr(key_upkeep, name, then_goes)
    key_upkeep.make_anew(
        stack.ledger,
        Lake(stack.settings.lake),
        batch.arrival_date,
        pytest.fail,
        stack.worker().loaded_keys,
    )
    [made] = files_of(stack)
    assert "-anew-" in made.path
    assert made.rows == 10


def test_an_index_that_is_damaged_when_a_batch_is_taken_out_keeps_what_was_let_go(
    new_stack: Callable[..., Stack],
) -> None:
    """Keys of a batch whose staged file housekeeping deleted are read from ClickHouse."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    [old] = stack.run()
    assert old.staged is not None
    stack.send_numbers(range(20, 25))
    *_, staged = stage_batches(stack.worker())
    with stack.ledger.begin() as connection:
        connection.execute(
            update(staged_files).where(staged_files.c.batch_id == old.batch_id).values(let_go_at=1)
        )
    stack.lake_file(old.staged.files[0].path).unlink()
    [of_old] = [file for file in files_of(stack) if old.batch_id in file.path]
    stack.lake_file(of_old.path).unlink()

    lake, worker = Lake(stack.settings.lake), stack.worker()
    told: list[str] = []
    swap = key_upkeep.without_batch(stack.ledger, lake, staged, told.append, worker.loaded_keys)
    assert [line for line in told if "may not be found" in line] == []
    key_upkeep.replace_key_files(stack.ledger, swap.before, swap.after)
    assert sum(file.rows for file in files_of(stack)) == 10
    stack.send_numbers(range(30))
    *_, resent = stage_batches(stack.worker())
    assert resent.staged is not None
    assert resent.staged.balance == Balance(ok=20, duplicate=10)


def left_in_the_lake(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Key files that are there, and no part of the index, when their time is over."""
    monkeypatch.setattr(key_upkeep, "KEPT_FOR_READERS_US", -1)
    key_upkeep.keep_index(stack.ledger, Lake(stack.settings.lake), [])
    there = {path.name for path in stack.lake_file("keys").rglob("*") if path.is_file()}
    return there - {file.path.rpartition("/")[2] for file in files_of(stack)}


def test_the_copy_without_the_only_batch_of_a_file_is_not_left(
    new_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is staged anew: nothing is left of the key file that only it was in."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    (batch,) = stage_batches(stack.worker())
    stack.lake_file(f"events/arrival_date={batch.arrival_date}/{batch.batch_id}.parquet").unlink()
    with pytest.raises(StagedFileDamaged):
        load_batches(stack.worker())
    stage_batches(stack.worker())
    assert left_in_the_lake(stack, monkeypatch) == set()
    assert sum(file.rows for file in files_of(stack)) == 10


@pytest.mark.parametrize("end", ["killed", "second"])
@pytest.mark.parametrize("what", ["merged", "anew", "without"])
def test_a_key_file_that_is_never_swapped_in_is_not_left(
    new_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch, what: str, end: str
) -> None:
    """Its writer died, or another had changed the index: it goes in its time, the others stay."""
    stack = new_stack(batch_max_records=5).make_topic()
    stack.send_numbers(range(10))
    first, _ = stage_batches(stack.worker())
    lake, day = Lake(stack.settings.lake), first.arrival_date
    before = files_of(stack)

    def write() -> None:
        if what == "merged":
            key_upkeep.keep_index(stack.ledger, lake, [day])
        elif what == "anew":
            key_upkeep.make_anew(stack.ledger, lake, day, print, stack.worker().loaded_keys)
        else:
            loaded = stack.worker().loaded_keys
            swap = key_upkeep.without_batch(stack.ledger, lake, first, print, loaded)
            key_upkeep.replace_key_files(stack.ledger, swap.before, swap.after)

    with monkeypatch.context() as patched:
        swaps = key_upkeep.replace_key_files
        patched.setattr(key_upkeep, "files_to_merge", lambda files: [path for path, _ in files])

        def swap_late(*given: Any) -> bool:
            if end == "killed":
                raise KeyboardInterrupt
            patched.setattr(key_upkeep, "replace_key_files", swaps)
            key_upkeep.keep_index(stack.ledger, lake, [day])
            return swaps(*given)

        patched.setattr(key_upkeep, "replace_key_files", swap_late)
        with suppress(KeyboardInterrupt):
            write()
    assert (files_of(stack) == before) == (end == "killed")
    assert sum(file.rows for file in files_of(stack)) == 10
    assert left_in_the_lake(stack, monkeypatch) == set()
    assert sum(file.rows for file in files_of(stack)) == 10
