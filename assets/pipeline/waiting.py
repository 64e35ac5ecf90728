"""Batches that wait for a person, and what can be decided of them.

    gap, suspect, failed ─retry_batch, retry_all─▶ planned, loading
    gap ─accept_gap─▶ planned, loading;  ─refuse_gap─▶ failed
    held ─release_batch─▶ staged;  ─restage_batch─▶ staged, or held once more
    a redrive ─give_up_redrive─▶ superseded
    planned, the file of its import gone ─give_up_import─▶ gap

Invariant: the decision is one compare-and-swap in the ledger; the next worker does the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from assets.pipeline.batch import WAITING, Batch, Kind, State
from assets.pipeline.circuit import STAGE
from assets.pipeline.errors import BatchError, ImportTrouble, StagedFileDamaged
from assets.pipeline.key_upkeep import without_batch
from assets.pipeline.leftovers import delete_leftovers
from assets.pipeline.mirror import mirror
from assets.pipeline.prove import read_fingerprints
from assets.pipeline.registering import stage_one
from assets.pipeline.resends import ranges_in, resends_of, told
from assets.pipeline.sources import GONE, check_source, lost_of
from assets.pipeline.staged_files import check_staged
from assets.pipeline.worker import Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger import gaps as ledger_gaps
from orchestration.ledger.attempts import attempts_of, tries_at
from orchestration.ledger.imports import import_beside
from orchestration.ledger.keys import KeySwap
from orchestration.ledger.leases import Lease, held_lease


def retry_batch(worker: Worker, batch_id: str) -> State:
    """Give a batch that waits for a person back to the workers; gives its new state."""
    batch = ledger_batches.read_batch(worker.ledger, batch_id)
    if batch.state is State.HELD:
        raise BatchError(
            f"batch {batch_id} is held: `tidemark release {batch_id}` publishes it as it is, "
            f"`tidemark retry {batch_id} --restage` stages it again"
        )
    if batch.state not in WAITING:
        raise BatchError(f"batch {batch_id} is {batch.state}: it does not wait for anybody")
    with worker.lease() as lease:
        return _give_back(worker, lease, batch)


def retry_all(worker: Worker, state: State, code: int | None) -> list[Batch]:
    """The same for all in a state, as far as their last error had that code, if one is given.

    Gives them as they were.
    """
    with worker.lease() as lease:
        batches = to_retry(worker, state, code)
        for batch in batches:
            _give_back(worker, lease, batch)
    return batches


def to_retry(worker: Worker, state: State, code: int | None) -> list[Batch]:
    """What `retry_all` would give back now."""
    waiting = ledger_batches.waiting_for_a_person(worker.ledger, *worker.settings.topics)
    return [
        batch
        for batch in waiting
        if batch.state is state and code in (None, _last_code(worker, batch))
    ]


def _last_code(worker: Worker, batch: Batch) -> int | None:
    failed = [one for one in attempts_of(worker.ledger, batch.batch_id) if one.outcome == "failed"]
    return failed[-1].error_code if failed else None


def _give_back(worker: Worker, lease: Lease, batch: Batch) -> State:
    again = State.PLANNED if batch.staged is None else State.LOADING
    ledger_batches.give_back(worker.ledger, lease, batch.batch_id, batch.state, again)
    return again


def accept_gap(worker: Worker, gap_id: int, why: str) -> ledger_gaps.Gap:
    """Count what a gap has lost as lost from now on, and let the rest of its batch go on.

    What is not lost is refused: records that Kafka has, a file that is back, rows in ClickHouse.
    """
    gap, batch = _undecided(worker, gap_id)
    ledger = worker.ledger
    with worker.lease() as lease:
        if gap.cause in ledger_gaps.UNREAD:
            skips = lost_of(worker, batch)
            lost = ledger_gaps.lost_ranges(batch, skips)
            note = _with_resends(worker, gap, resends_of(worker, batch, lost) if lost else {})
            ledger_gaps.accept_lost_offsets(ledger, lease, gap, batch, skips, why, note)
        else:
            kind = Kind(gap.cause)
            _check_lost(worker, batch, kind)
            index, resends = KeySwap(), Counter[str]()
            if kind is Kind.EVENTS:
                index = without_batch(ledger, worker.lake, batch, worker.say, worker.loaded_keys)
                resends = resends_of(worker, batch)
            note = _with_resends(worker, gap, resends)
            ledger_gaps.accept_lost_file(ledger, lease, gap, index, why, note)
    return ledger_gaps.read_gap(ledger, gap_id)


def resends_of_lost(worker: Worker, gap: ledger_gaps.Gap) -> Mapping[str, int]:
    """How many resends of what a gap has lost each batch has counted as duplicates so far."""
    batch = ledger_batches.read_batch(worker.ledger, gap.batch_id)
    if gap.cause in ledger_gaps.UNREAD:
        lost = ranges_in(gap.lost)
        return resends_of(worker, batch, lost) if lost else {}
    return resends_of(worker, batch) if gap.cause == Kind.EVENTS else {}


def _with_resends(worker: Worker, gap: ledger_gaps.Gap, resends: Mapping[str, int]) -> str:
    """The gap's note, with what it has cost besides."""
    if not resends:
        return gap.note
    worker.say(told(resends))
    return f"{gap.note}; {told(resends)}"


def refuse_gap(worker: Worker, gap_id: int, why: str) -> ledger_gaps.Gap:
    """Do not put up with a loss: its batch is failed until its records are back."""
    gap, _ = _undecided(worker, gap_id)
    with worker.lease() as lease:
        ledger_gaps.refuse(worker.ledger, lease, gap, why)
    return ledger_gaps.read_gap(worker.ledger, gap_id)


def _undecided(worker: Worker, gap_id: int) -> tuple[ledger_gaps.Gap, Batch]:
    gap = ledger_gaps.read_gap(worker.ledger, gap_id)
    if gap.decision is not None:
        raise BatchError(f"gap {gap_id} was {gap.decision} already: it cannot be decided again")
    batch = ledger_batches.read_batch(worker.ledger, gap.batch_id)
    if batch.is_redrive:
        raise BatchError(
            f"gap {gap_id} is of a redrive, whose records are dead letters still: give it up "
            f"instead, or `tidemark retry {batch.batch_id}` when its file is back"
        )
    return gap, batch


def _check_lost(worker: Worker, batch: Batch, kind: Kind) -> None:
    """Raise BatchError when a file, or what was in it, is to be had after all."""
    file = batch.staged.file(kind) if batch.staged else None
    assert file is not None
    retry = f"nothing is lost: `tidemark retry {batch.batch_id}` carries it on"
    with suppress(StagedFileDamaged):
        check_staged(worker.lake, file)
        raise BatchError(f"{file.path} is whole again, {retry}")
    if kind is Kind.EVENTS:
        with suppress(*GONE):
            check_source(worker, batch)
            where = worker.files[batch.topic].uri if batch.is_import else "Kafka"
            raise BatchError(f"{where} has the records of batch {batch.batch_id}, {retry}")
    database = worker.settings.clickhouse_database
    if read_fingerprints(worker.clickhouse, database, kind.value, batch.batch_id):
        raise BatchError(f"ClickHouse has rows of {file.path}, {retry}")


def release_batch(worker: Worker, batch_id: str) -> Batch:
    """Let a held batch go on to loading, as it was staged."""
    with worker.lease() as lease:
        held = _check_held(worker, batch_id, "be released")
        stagings = tries_at(worker.ledger, batch_id, STAGE)
        ledger_batches.give_back(worker.ledger, lease, batch_id, State.HELD, State.STAGED)
        delete_leftovers(worker.ledger, worker.lake, held, stagings)
    return ledger_batches.read_batch(worker.ledger, batch_id)


def restage_batch(worker: Worker, batch_id: str) -> Batch:
    """Stage a held batch again with today's code, from Kafka; it may have to be held again.

    What was staged before stays registered until the new files take its place: when Kafka no
    longer has the records, or the worker dies, the batch is held as it was.
    """
    batch = _check_held(worker, batch_id, "be staged again")
    with worker.lease() as lease:
        try:
            return stage_one(worker, lease, worker.circuit(lease, STAGE), batch)
        except GONE as error:
            raise BatchError(
                f"batch {batch_id} cannot be staged again: {error}. It stays held as it was "
                f"staged; `tidemark release {batch_id}` publishes that"
            ) from error


def give_up_redrive(worker: Worker, batch_id: str) -> Batch:
    """End a redrive that cannot go on; its dead letters can be chosen again."""
    batch = ledger_batches.read_batch(worker.ledger, batch_id)
    if not batch.is_redrive:
        raise BatchError(f"batch {batch_id} is no redrive: only these can be given up")
    if batch.state not in WAITING:
        raise BatchError(f"batch {batch_id} is {batch.state}: it does not wait for anybody")
    database = worker.settings.clickhouse_database
    with worker.lease() as lease:
        table = Kind.EVENTS.value
        found = read_fingerprints(worker.clickhouse, database, table, batch_id)
        if rows := sum(print_.rows for print_ in found):
            raise BatchError(
                f"batch {batch_id} has {rows:,} rows in {database}.{table}: `tidemark retry "
                f"{batch_id}` carries it on; to give it up, delete them first"
            )
        ledger_batches.give_up(worker.ledger, lease, batch_id, f"given up; {batch.note}")
        batch = ledger_batches.read_batch(worker.ledger, batch_id)
        stagings = tries_at(worker.ledger, batch_id, STAGE)
        delete_leftovers(worker.ledger, worker.lake, batch, stagings)
        mirror(worker.clickhouse, database, [batch], attempts_of(worker.ledger, batch_id))
    return batch


def give_up_import(worker: Worker, name: str) -> list[ledger_gaps.Gap]:
    """Let what waits for the file of an import be a gap, which can be decided; gives the gaps."""
    ledger, topic = worker.ledger, worker.settings.topic
    one = import_beside(ledger, topic, name)
    seconds = worker.settings.lease_seconds
    with held_lease(ledger, worker.import_lease_name, seconds), worker.lease() as lease:
        planned = [
            batch
            for batch in ledger_batches.waiting_for_a_file(ledger, topic)
            if batch.topic == name
        ]
        if not planned:
            raise BatchError(f"nothing of {name} waits for its file: see `tidemark import --list`")
        for batch in planned:
            try:
                check_source(worker, batch)
            except ImportTrouble as error:
                lost, records = " ".join(map(str, batch.readable)), sum(map(len, batch.readable))
                ledger_gaps.gap_found(
                    ledger, lease, batch.batch_id, ledger_gaps.IMPORT, lost, records, str(error)
                )
            else:
                raise BatchError(
                    f"{one.uri} is there: `tidemark import --project {one.project_id} {one.uri}` "
                    "goes on with it"
                )
    ids = {batch.batch_id for batch in planned}
    found = ledger_gaps.all_gaps(ledger, topic)
    return [gap for gap in found if gap.batch_id in ids and gap.decision is None]


def _check_held(worker: Worker, batch_id: str, to: str) -> Batch:
    batch = ledger_batches.read_batch(worker.ledger, batch_id)
    if batch.state is not State.HELD:
        raise BatchError(f"batch {batch_id} is {batch.state}: only a held batch can {to}")
    return batch
