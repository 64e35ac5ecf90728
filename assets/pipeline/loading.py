"""Loading batches: what is staged comes into ClickHouse, events first, dead letters after.

    staged ─▶ loading ─▶ inserted and proved (load.py): loaded ─▶ committed ─▶ dead letters, mirror

Invariant: nothing is inserted but after a proof that it is not there, nor without the lease, nor
where a rebuild that was cut short may still take it away (swap.py).
"""

from __future__ import annotations

from assets.pipeline.batch import LOADED, Batch, Kind, State
from assets.pipeline.circuit import DEAD_LETTERS, LOAD, STAGE, Circuit
from assets.pipeline.clock import StageClock
from assets.pipeline.commit import commit_offsets
from assets.pipeline.errors import (
    BatchError,
    ProofFailed,
    StagedFileDamaged,
    is_given_up,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.leftovers import delete_leftovers
from assets.pipeline.letters import check_letters
from assets.pipeline.load import load
from assets.pipeline.mirror import mirror, mirror_whole
from assets.pipeline.prove import rows_of_others
from assets.pipeline.sources import GONE, check_source
from assets.pipeline.swap import refuse_late_swaps
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger import redrives as ledger_redrives
from orchestration.ledger.attempts import attempt, tries_at
from orchestration.ledger.gaps import gap_found
from orchestration.ledger.leases import Lease, assert_held


def load_batches(worker: Worker, held: list[BatchError] | None = None) -> list[Batch]:
    """Load and prove every staged batch, then commit offsets.

    A batch that cannot be loaded holds up no other; the first such error is raised at the end. What
    is waited for, and what waits for a person, goes into `held` instead, where it is given.
    """
    aside = PutAside(held)
    with worker.lease() as lease:
        loaded = load_these(worker, lease, worker.unfinished(), aside)
    aside.raise_first()
    return _read_again(worker, loaded)


def load_these(worker: Worker, lease: Lease, batches: list[Batch], aside: PutAside) -> list[Batch]:
    """The same for some batches, under the caller's lease; gives those that were loaded."""
    loaded = [batch for batch in batches if batch.state is State.LOADED]
    with aside.pauses():
        loaded += _load_due(worker, lease, batches, aside)
    for topic in dict.fromkeys(batch.topic for batch in loaded):
        _commit(worker, lease, [batch for batch in loaded if batch.topic == topic])
    return loaded


def _load_due(worker: Worker, lease: Lease, batches: list[Batch], aside: PutAside) -> list[Batch]:
    """Load what does not wait by itself. Raises LoadingPaused when the table takes nothing."""
    circuit = worker.circuit(lease, LOAD, Kind.EVENTS)
    due = circuit.due([b for b in batches if b.state in (State.STAGED, State.LOADING)])
    if not due:
        return []
    loaded: list[Batch] = []
    circuit.check()
    with circuit.watched():
        # When ClickHouse is away, or refuses us, no batch is to blame. Before any row: a ledger
        # that is restored from a backup then meets what it has forgotten.
        mirror(worker.clickhouse, worker.settings.clickhouse_database, due, [])
        for batch in due:
            with aside.errors():
                _load_one(worker, lease, circuit, batch)
                loaded.append(batch)
            circuit.check()
    return loaded


def load_dead_letters(worker: Worker, held: list[BatchError] | None = None) -> list[Batch]:
    """Load and prove the dead letters of every loaded batch, and mirror the ledger.

    `held` as in load_batches.
    """
    aside = PutAside(held)
    with worker.lease() as lease:
        done = finish_these(worker, lease, worker.unfinished(), aside)
    aside.raise_first()
    return _read_again(worker, done)


def finish_these(
    worker: Worker, lease: Lease, batches: list[Batch], aside: PutAside
) -> list[Batch]:
    """The same for some batches, under the caller's lease; gives those that are done."""
    circuit = worker.circuit(lease, DEAD_LETTERS, Kind.DEAD_LETTERS)
    due = circuit.due([b for b in batches if b.state in LOADED])
    events = worker.circuit(lease, LOAD, Kind.EVENTS)
    others = ledger_batches.waiting_for_a_person(worker.ledger, *worker.settings.topics)
    others += [batch for batch in batches if batch.state in (State.STAGED, State.LOADING)]
    if not due and (events.is_open or not (others or circuit.fails)):
        return []
    done: list[Batch] = []
    with aside.pauses():
        events.check()
        circuit.check()
        with circuit.watched():
            for batch in due:
                with aside.errors():
                    _load_dead_letters_of(worker, lease, circuit, batch)
                    done.append(batch)
                circuit.check()
            failpoint("after-dead-letters")
            told = [*done, *others, *_mended_by(worker, done)]
            database = worker.settings.clickhouse_database
            mirror_whole(worker.clickhouse, database, worker.ledger, told)
            circuit.table_works()  # as far as anything needs it that does not wait by itself
            failpoint("after-mirror")
        # Only now: until then the next worker does all of this again.
        for batch in done:
            ledger_batches.set_dead_letters_loaded(worker.ledger, lease, batch.batch_id)
        return done
    return []


def _mended_by(worker: Worker, done: list[Batch]) -> list[Batch]:
    """The batches whose balance has changed because of redrives among these."""
    redrives = [batch.batch_id for batch in done if batch.is_redrive]
    old = ledger_redrives.old_batches_of(worker.ledger, redrives)
    return [ledger_batches.read_batch(worker.ledger, batch_id) for batch_id in old]


def _commit(worker: Worker, lease: Lease, loaded: list[Batch]) -> None:
    """Commit what is loaded of one topic."""
    of_kafka = [batch for batch in loaded if not (batch.is_redrive or batch.is_import)]
    if of_kafka:
        _commit_group(worker, of_kafka[-1])
    failpoint("after-commit")
    for batch in loaded:
        ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.COMMITTED)


def _commit_group(worker: Worker, newest: Batch) -> None:
    ends = ledger_batches.loaded_ends(worker.ledger, newest.cluster_id, newest.topic_id)
    trouble = commit_offsets(worker.settings.kafka_client, newest.topic, ends, newest.batch_id)
    if trouble:
        worker.say(f"group offsets of {newest.topic} were not committed (no harm done): {trouble}")


def _load_one(worker: Worker, lease: Lease, circuit: Circuit, batch: Batch) -> None:
    ledger = worker.ledger
    clock = StageClock()
    stagings = tries_at(ledger, batch.batch_id, STAGE)
    with attempt(ledger, batch.batch_id, LOAD, worker.run_id) as number:
        if number > 1:
            worker.say(f"batch {batch.batch_id}: attempt {number} at loading")
        ledger_batches.set_state(ledger, lease, batch.batch_id, State.LOADING)
        delete_leftovers(ledger, worker.lake, batch, stagings)
        failpoint("before-insert")
        try:
            with circuit.one(batch):
                inserted = _load_events(worker, lease, batch, clock)
        except StagedFileDamaged as error:
            _stage_again_if_possible(worker, lease, batch, error)
            raise
        except ProofFailed as error:
            ledger_batches.set_state(ledger, lease, batch.batch_id, State.SUSPECT, str(error))
            raise
        except BatchError as error:
            if is_given_up(error):
                ledger_batches.set_state(ledger, lease, batch.batch_id, State.FAILED, str(error))
            raise
        failpoint("after-insert")
        ledger_batches.set_state(ledger, lease, batch.batch_id, State.LOADED)
    _tell_loaded(worker, batch, clock, inserted)


def load_early(worker: Worker, lease: Lease, batch: Batch) -> None:
    """Load a batch that was just staged; what goes wrong is nobody's fault yet, and is raised."""
    mirror(worker.clickhouse, worker.settings.clickhouse_database, [batch], [])
    clock = StageClock()
    stagings = tries_at(worker.ledger, batch.batch_id, STAGE)
    with attempt(worker.ledger, batch.batch_id, LOAD, worker.run_id):
        ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.LOADING)
        delete_leftovers(worker.ledger, worker.lake, batch, stagings)
        failpoint("before-insert")
        inserted = _load_events(worker, lease, batch, clock)
        failpoint("after-insert")
        ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.LOADED)
    _tell_loaded(worker, batch, clock, inserted)


def _load_events(worker: Worker, lease: Lease, batch: Batch, clock: StageClock) -> bool:
    return load(
        worker.clickhouse,
        worker.settings.clickhouse_database,
        worker.lake,
        batch,
        Kind.EVENTS,
        worker.run_id,
        clock,
        may_insert=lambda: _may_insert(worker, lease, batch),
    )


def _tell_loaded(worker: Worker, batch: Batch, clock: StageClock, inserted: bool) -> None:
    failpoint("after-loaded")
    ledger_batches.add_timings(worker.ledger, batch.batch_id, clock.timings())
    assert batch.staged is not None
    rows = batch.staged.balance.ok
    worker.say(
        f"batch {batch.batch_id}: {rows:,} rows "
        + ("loaded and proved" if inserted or not rows else "were in ClickHouse already, proved")
    )


def _may_insert(worker: Worker, lease: Lease, batch: Batch) -> None:
    if batch.is_redrive:
        _check_not_there(worker, batch)
    refuse_late_swaps(worker, batch.arrival_date)
    assert_held(worker.ledger, lease)


def _check_not_there(worker: Worker, redrive: Batch) -> None:
    """Raise ProofFailed when ClickHouse has rows of the same records from another batch.

    A ledger that was restored from a backup forgets redrives; their rows are still there.
    """
    letters = ledger_redrives.letters_of(worker.ledger, redrive.batch_id)
    found = rows_of_others(
        worker.clickhouse,
        worker.settings.clickhouse_database,
        redrive,
        [letter.place for letter in letters],
    )
    if found:
        places = ", ".join(f"{partition}:{offset}" for partition, offset, _ in found[:3])
        raise ProofFailed(
            f"redrive {redrive.batch_id} is not loaded: {len(found):,} of its records are rows of "
            f"events already ({places} …, batch {found[0][2]}). If this ledger does not know that "
            "batch, it is an older or another one: see TIDEMARK_LEDGER_URL"
        )


def _stage_again_if_possible(
    worker: Worker, lease: Lease, batch: Batch, damage: StagedFileDamaged
) -> None:
    """The proof came first, so nothing is in ClickHouse; the records may still be there."""
    try:
        if batch.is_redrive:
            for old in worker.old_batches(batch):
                check_letters(worker.lake, old)
        else:
            check_source(worker, batch)
    except (*GONE, StagedFileDamaged) as gone:
        # The file may come back, with the mount or the bucket: its registration is kept.
        note = f"{damage}. Nor can it be staged again: {gone}"
        if batch.is_redrive:
            ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.SUSPECT, note)
        else:
            _file_lost(worker, lease, batch, Kind.EVENTS, note)
        return
    by = "`tidemark import`, said again" if batch.is_import else "the next run"
    worker.say(f"batch {batch.batch_id}: {damage}; it is staged again by {by}")
    ledger_batches.stage_again(worker.ledger, lease, batch.batch_id, str(damage))


def _file_lost(worker: Worker, lease: Lease, batch: Batch, kind: Kind, note: str) -> None:
    file = batch.staged.file(kind) if batch.staged else None
    assert file is not None
    gap_found(worker.ledger, lease, batch.batch_id, kind, file.path, file.rows, note)


def _load_dead_letters_of(worker: Worker, lease: Lease, circuit: Circuit, batch: Batch) -> None:
    assert batch.staged is not None
    rejected = batch.staged.balance.rejected
    if not rejected or batch.staged.has_let_go(Kind.DEAD_LETTERS):
        return
    with attempt(worker.ledger, batch.batch_id, DEAD_LETTERS, worker.run_id):
        try:
            with circuit.one(batch):
                load(
                    worker.clickhouse,
                    worker.settings.clickhouse_database,
                    worker.lake,
                    batch,
                    Kind.DEAD_LETTERS,
                    worker.run_id,
                    StageClock(),
                    may_insert=lambda: assert_held(worker.ledger, lease),
                )
        except BatchError as error:
            if isinstance(error, StagedFileDamaged):
                _file_lost(worker, lease, batch, Kind.DEAD_LETTERS, f"dead letters: {error}")
            elif isinstance(error, ProofFailed) or is_given_up(error):
                note = f"dead letters: {error}"
                ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.SUSPECT, note)
            raise
    worker.say(f"batch {batch.batch_id}: {rejected:,} dead letters loaded and proved")


def _read_again(worker: Worker, batches: list[Batch]) -> list[Batch]:
    return [ledger_batches.read_batch(worker.ledger, batch.batch_id) for batch in batches]
