"""Loading: a staged file is in its table once, or not at all, whatever happened before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from assets.pipeline import lanes as lanes_module
from assets.pipeline import load as load_module
from assets.pipeline import loading as loading_module
from assets.pipeline import registering as registering_module
from assets.pipeline import stage as stage_module
from assets.pipeline import staging as staging_module
from assets.pipeline.batch import Batch, Kind, Range, StagedFile, State
from assets.pipeline.clickhouse import connect, make_tables
from assets.pipeline.clock import StageClock
from assets.pipeline.errors import (
    BatchError,
    LeaseLost,
    ProofFailed,
    StagedFileDamaged,
    TransientError,
)
from assets.pipeline.lake import Lake
from assets.pipeline.load import insert, load
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.waiting import retry_batch
from orchestration.ledger.attempts import attempts_of
from orchestration.ledger.tables import leases
from tests.conftest import unused_port
from tests.records import value_of
from tests.stack import Stack
from tests.staging import batch_of, lane, staged_into

NewStack = Callable[..., Stack]


@dataclasses.dataclass(frozen=True)
class Loading:
    """Tables and a lake, and batches staged by hand."""

    stack: Stack
    lake: Lake

    def staged(self, start: int, end: int) -> Batch:
        """A batch of sound records, staged."""
        batch = batch_of(Range(0, start, end))
        records = lane(map(value_of, range(start, end)), start=start)
        staged, _ = staged_into(self.lake, batch, records)
        return dataclasses.replace(batch, staged=staged)

    def load(self, batch: Batch) -> bool:
        """Load a batch's events."""
        return load(
            self.stack.client,
            self.stack.database,
            self.lake,
            batch,
            Kind.EVENTS,
            "run",
            StageClock(),
        )

    def insert(self, batch: Batch, file: StagedFile | None = None) -> None:
        """Send a batch's events without asking what is there."""
        assert batch.staged is not None
        file = file or batch.staged.file(Kind.EVENTS)
        assert file is not None
        insert(self.stack.client, self.stack.database, "events", self.lake, file, batch, "run")

    def offsets(self) -> list[int]:
        """The offsets that are in the table."""
        return [at for (at,) in self.stack.rows("SELECT _offset FROM {database}.events ORDER BY 1")]


@pytest.fixture
def loading(new_stack: NewStack) -> Loading:
    """Fresh tables and an empty lake; no Kafka."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    make_tables(stack.client, stack.database)
    return Loading(stack, Lake(stack.settings.lake))


def half_of(loading: Loading, batch: Batch) -> StagedFile:
    """A file of the first half of a batch's rows."""
    assert batch.staged is not None
    file = batch.staged.file(Kind.EVENTS)
    assert file is not None
    table = pq.read_table(loading.lake.full_path(file.path))
    path = f"{file.path}.half"
    with loading.lake.create(path) as sink:
        pq.write_table(table.slice(0, len(table) // 2), sink)
    return StagedFile(Kind.EVENTS, path, len(table) // 2, sink.bytes, sink.sha256)


def test_a_loaded_batch_is_not_loaded_again(loading: Loading) -> None:
    """The first load inserts and proves; the next one finds all of it there."""
    batch = loading.staged(0, 100)
    assert loading.load(batch) is True
    assert loading.load(batch) is False
    assert loading.offsets() == list(range(100))


def test_the_proof_not_the_token_decides(loading: Loading) -> None:
    """Where the server has forgotten the token, a retry stores nothing twice all the same."""
    loading.stack.client.command(
        f"ALTER TABLE {loading.stack.database}.events "
        "MODIFY SETTING non_replicated_deduplication_window = 1"
    )
    first, second, third = (loading.staged(at, at + 10) for at in (0, 10, 20))
    for batch in (first, second, third):
        assert loading.load(batch) is True
    for batch in (first, second, third):
        assert loading.load(batch) is False
    assert loading.offsets() == list(range(30))


def test_a_blind_repetition_is_dropped_by_its_token(loading: Loading) -> None:
    """A zombie's insert that comes after the load of the same file stores nothing."""
    batch = loading.staged(0, 100)
    loading.load(batch)
    loading.load(loading.staged(100, 110))
    loading.insert(batch)
    assert loading.offsets() == list(range(110))


def test_an_insert_is_one_part(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many row groups a file has and however wide its rows are, it is one block."""
    monkeypatch.setattr(stage_module, "ROW_GROUP_ROWS", 500)
    loading.stack.client.command("SYSTEM STOP MERGES")
    try:
        batch = batch_of(Range(0, 0, 6_000))
        wide = b'{"a":"%s"}' % (b"x" * 60_000)  # 360 MB, more than the server's block of bytes
        values = (value_of(number, wide) for number in range(6_000))
        staged, _ = staged_into(loading.lake, batch, lane(values), size=500)
        loading.load(dataclasses.replace(batch, staged=staged))
        parts = loading.stack.rows(
            "SELECT rows, level FROM system.parts "
            "WHERE database = {database:String} AND table = 'events' AND active",
            database=loading.stack.database,
        )
    finally:
        loading.stack.client.command("SYSTEM START MERGES")
    assert parts == [(6_000, 0)]


def test_half_a_batch_is_not_completed_nor_doubled(loading: Loading) -> None:
    """When the table holds a part of a batch, nothing is inserted and both counts are told."""
    batch = loading.staged(0, 10)
    loading.insert(batch, half_of(loading, batch))
    with pytest.raises(ProofFailed, match=r"before the insert: .* staged 10 rows, .* has 5"):
        loading.load(batch)
    assert loading.offsets() == list(range(5))


def test_rows_of_other_offsets_are_noticed(loading: Loading) -> None:
    """The right number of rows with a wrong offset is not a proof."""
    batch = loading.staged(0, 10)
    loading.load(batch)
    loading.stack.client.command(
        f"ALTER TABLE {loading.stack.database}.events UPDATE _offset = 77 WHERE _offset = 7",
        settings={"mutations_sync": 2},
    )
    with pytest.raises(ProofFailed, match="with other offsets"):
        loading.load(batch)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_not_loaded(loading: Loading, damage: str) -> None:
    """A file that is not what was registered is refused before anything is sent."""
    batch = loading.staged(0, 10)
    assert batch.staged is not None
    (file,) = batch.staged.files
    path = Path(loading.lake.full_path(file.path))
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-9] if damage == "cut" else data[:50] + b"\0" + data[51:])
    with pytest.raises(StagedFileDamaged, match=file.path):
        loading.load(batch)
    assert loading.offsets() == []


def test_a_clickhouse_that_is_away_is_worth_another_try() -> None:
    """No server is a TransientError of one line."""
    with pytest.raises(TransientError, match="ClickHouse, connecting"):
        connect(f"http://127.0.0.1:{unused_port()}", "default", "")


def test_what_clickhouse_refuses_is_not_tried_again(loading: Loading) -> None:
    """A table that lacks a staged column is an error for a person, and no column is dropped."""
    loading.stack.client.command(f"ALTER TABLE {loading.stack.database}.events DROP COLUMN sdk")
    with pytest.raises(BatchError, match="ClickHouse refused loading") as refused:
        loading.load(loading.staged(0, 3))
    assert not isinstance(refused.value, TransientError)
    assert loading.offsets() == []


def test_a_torn_batch_becomes_suspect_and_holds_up_no_other(new_stack: NewStack) -> None:
    """A batch that does not balance waits for a person; those behind it are loaded at once."""
    stack = new_stack(batch_max_records=10).make_topic()
    stack.send_numbers(range(20))
    torn, _sound = stage_batches(stack.worker())
    make_tables(stack.client, stack.database)
    loading = Loading(stack, Lake(stack.settings.lake))
    loading.insert(torn, half_of(loading, torn))
    with pytest.raises(ProofFailed):
        load_batches(stack.worker())
    suspect, loaded = stack.batches()
    assert (suspect.state, loaded.state) == (State.SUSPECT, State.COMMITTED)
    assert "staged 10 rows, ClickHouse has 5" in suspect.note
    assert [each.outcome for each in attempts_of(stack.ledger, torn.batch_id)] == ["ok", "failed"]
    assert loading.offsets() == [*range(5), *range(10, 20)]


def test_a_suspect_batch_is_loaded_once_a_person_has_mended_it(new_stack: NewStack) -> None:
    """After the stray rows are gone, `retry` gives the batch back, and it loads once."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    (torn,) = stage_batches(stack.worker())
    make_tables(stack.client, stack.database)
    loading = Loading(stack, Lake(stack.settings.lake))
    loading.insert(torn, half_of(loading, torn))
    with pytest.raises(ProofFailed):
        load_batches(stack.worker())
    stack.client.command(f"TRUNCATE TABLE {stack.database}.events")
    assert retry_batch(stack.worker(), torn.batch_id) is State.LOADING
    stack.run()
    assert stack.account().places == dict.fromkeys(sent, 1)
    with pytest.raises(BatchError, match="does not wait for anybody"):
        retry_batch(stack.worker(), torn.batch_id)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_batch_whose_file_was_damaged_is_staged_again(new_stack: NewStack, damage: str) -> None:
    """Nothing of a damaged file is loaded; the next run reads its records from Kafka again."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(10))
    (batch,) = stage_batches(stack.worker())
    assert batch.staged is not None
    path = stack.lake_file(batch.staged.files[0].path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(StagedFileDamaged):
        load_batches(stack.worker())
    (again,) = stack.batches()
    assert (again.state, again.staged) == (State.PLANNED, None)
    assert stack.account().events == []
    stack.run()
    assert stack.account().places == dict.fromkeys(sent, 1)
    assert [each.stage for each in attempts_of(stack.ledger, batch.batch_id)] == [
        *("stage", "load", "stage", "load")
    ]


def test_dead_letters_that_do_not_balance_make_the_batch_suspect(new_stack: NewStack) -> None:
    """Stray dead letters under a batch's name stop that batch, not the ones behind it."""
    stack = new_stack(batch_max_records=2).make_topic()
    stack.send(b"no event", value_of(1), b"nor this", value_of(2))
    torn, _ = stage_batches(stack.worker())
    load_batches(stack.worker())
    stack.client.command(
        f"INSERT INTO {stack.database}.dead_letters (_batch_id, _offset) "
        f"VALUES ('{torn.batch_id}', 77)"
    )
    with pytest.raises(ProofFailed):
        load_dead_letters(stack.worker())
    assert stack.batches()[0].state is State.SUSPECT
    load_dead_letters(stack.worker())
    assert stack.batches()[1].dead_letters_loaded_at is not None


def expire_leases(stack: Stack) -> None:
    """As when a worker falls silent for too long."""
    with stack.ledger.begin() as connection:
        connection.execute(update(leases).values(expires_at=0))


@pytest.mark.parametrize("point", ["after-plan", "after-stage"])
def test_a_zombie_that_stages_is_refused(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A worker that wakes up after another has done its work registers nothing."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(20))
    wakes_up_too_late(stack, monkeypatch, point)
    with pytest.raises(LeaseLost):
        stage_batches(stack.worker("zombie"))
    (batch,) = stack.batches()
    assert batch.state is State.COMMITTED
    assert stack.account().places == dict.fromkeys(sent, 1)


@pytest.mark.parametrize("point", ["before-insert", "after-insert", "after-loaded"])
def test_a_zombie_that_loads_is_refused(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A worker that wakes up after another has loaded the batch neither doubles nor moves it."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(20))
    stage_batches(stack.worker("zombie"))
    wakes_up_too_late(stack, monkeypatch, point)
    with pytest.raises(LeaseLost):
        load_batches(stack.worker("zombie"))
    (batch,) = stack.batches()
    assert batch.state is State.COMMITTED
    assert stack.account().places == dict.fromkeys(sent, 1)


def test_a_zombie_between_proof_and_insert_stores_nothing(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that had seen an empty table before another loaded the batch is dropped."""
    stack = new_stack().make_topic()
    sent = stack.send_numbers(range(20))
    stage_batches(stack.worker("zombie"))
    really_insert = load_module.insert

    def insert_late(*arguments: object) -> None:
        monkeypatch.setattr(load_module, "insert", really_insert)
        expire_leases(stack)
        stack.run("successor")
        really_insert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(load_module, "insert", insert_late)
    with pytest.raises(LeaseLost):
        load_batches(stack.worker("zombie"))
    assert stack.account().places == dict.fromkeys(sent, 1)
    assert stack.rows("SELECT DISTINCT _run_id FROM {database}.events") == [("successor",)]


def wakes_up_too_late(stack: Stack, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """At that point the worker loses its lease, and another does all there is to do."""

    def fall_silent(name: str) -> None:
        if name == point:
            for module in modules:
                monkeypatch.setattr(module, "failpoint", lambda name: None)
            expire_leases(stack)
            stack.run("successor")

    modules = (lanes_module, staging_module, registering_module, loading_module)
    for module in modules:
        monkeypatch.setattr(module, "failpoint", fall_silent)


def test_dead_letters_are_loaded_once(new_stack: NewStack) -> None:
    """Loading them again, as after a crash before the ledger knew, adds none."""
    stack = new_stack().make_topic()
    stack.send(b"{", value_of(1), b"[]")
    stage_batches(stack.worker())
    (batch,) = load_batches(stack.worker())
    loading = Loading(stack, Lake(stack.settings.lake))
    worker = stack.worker()
    for expected in (True, False):
        loaded = load(
            worker.clickhouse,
            stack.database,
            loading.lake,
            batch,
            Kind.DEAD_LETTERS,
            "run",
            StageClock(),
        )
        assert loaded is expected
    load_dead_letters(worker)
    assert sorted(stack.account().dead_letters) == [(0, 0), (0, 2)]
