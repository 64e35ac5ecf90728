"""Repair: batches of which ClickHouse has lost every row are loaded again from their staged files.

    lost? ─ prove under the lease ─▶ file whole? ─▶ `loading`, retries + 1 ─▶ load, prove, commit

Rows of a batch that was given up are deleted: its records are dead letters still. Else only nothing
can be filled up without risk: what the server holds in part, or altered, is left to a person. The
staged file is the truth, and is checked before the batch is given back; the next higher number of
retries makes a new token, because the server may remember the old one and would drop the insert
without a word. A crash on the way leaves a batch that any micro-batch loads. What the mirror of the
ledger has lost is copied there again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from assets.pipeline.batch import LOADED, WAITING, Batch, Kind, State
from assets.pipeline.clickhouse import named_errors
from assets.pipeline.errors import LeaseHeld, StagedFileDamaged, StagedFileLetGo
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.mirror import mirror_whole, mirrored_states
from assets.pipeline.prove import Proof, compare, read_fingerprints
from assets.pipeline.staged_files import check_staged
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import load_again, read_batch

_NOTE = "ClickHouse had lost its rows; it is loaded again from its staged file"
_MIRRORED_AT_ONCE = 1_000


@dataclass(frozen=True)
class Repairs:
    """What was given back and is to be loaded again, and why others were left: by batch id.

    Of those in `deleted`, which were given up before, rows were deleted.
    """

    given_back: tuple[str, ...]
    left: dict[str, str]
    deleted: tuple[str, ...] = ()


def repair(worker: Worker, batch_ids: Iterable[str]) -> Repairs:
    """Load these batches again, as far as that is safe; then whatever else waits to be loaded.

    Raises what loading raises: the first error, after all batches had their turn.
    """
    given_back: list[str] = []
    deleted: list[str] = []
    left: dict[str, str] = {}
    with worker.lease() as lease:
        for batch_id in dict.fromkeys(batch_ids):
            batch = read_batch(worker.ledger, batch_id)
            if batch.state is State.SUPERSEDED:
                _delete_rows(worker, batch)
                deleted.append(batch_id)
                continue
            trouble = _why_not(worker, batch)
            if trouble:
                left[batch_id] = trouble
                continue
            load_again(worker.ledger, lease, batch_id, _NOTE)
            worker.say(f"batch {batch_id}: given back, to be loaded from its staged file")
            given_back.append(batch_id)
    if given_back:
        try:
            load_batches(worker)
            load_dead_letters(worker)
        except LeaseHeld as error:
            worker.say(f"{error}: that worker, or the next micro-batch, loads what was given back")
    return Repairs(tuple(given_back), left, tuple(deleted))


def _delete_rows(worker: Worker, batch: Batch) -> None:
    with named_errors(f"deleting rows of {batch.batch_id}"):
        for table in (Kind.EVENTS, Kind.DEAD_LETTERS):
            worker.clickhouse.command(
                "ALTER TABLE {database:Identifier}.{table:Identifier} "
                "DELETE WHERE _batch_id = {batch_id:String} SETTINGS mutations_sync = 2",
                parameters={
                    "database": worker.settings.clickhouse_database,
                    "table": table.value,
                    "batch_id": batch.batch_id,
                },
            )
    worker.say(f"batch {batch.batch_id}: was given up; its rows are deleted")


def mirror_again(worker: Worker, batches: Sequence[Batch]) -> None:
    """Copy to the mirror those of these batches that it does not know as they are.

    A micro-batch mirrors what it carries on; here it is about those that none will carry on.
    """
    client, database = worker.clickhouse, worker.settings.clickhouse_database
    settled = [
        batch for batch in batches if batch.state in (State.COMMITTED, State.SUPERSEDED, *WAITING)
    ]
    known = mirrored_states(client, database, [batch.batch_id for batch in settled])
    lost = [batch for batch in settled if known.get(batch.batch_id) != batch.state]
    for at in range(0, len(lost), _MIRRORED_AT_ONCE):
        mirror_whole(client, database, worker.ledger, lost[at : at + _MIRRORED_AT_ONCE])
    if lost:
        worker.say(f"{len(lost):,} batches are copied to the mirror of the ledger again")


def _why_not(worker: Worker, batch: Batch) -> str:
    """Why a batch cannot be loaded again from its files; empty when it can."""
    if batch.state not in LOADED or batch.staged is None:
        return f"it is {batch.state}: only a batch that was loaded can be loaded again"
    if batch.rows_let_go_at is not None:
        return "its date of events was let go of: `tidemark backfill rebuild` makes that anew"
    lost = []
    for kind in (Kind.EVENTS, Kind.DEAD_LETTERS):
        if kind is Kind.DEAD_LETTERS and batch.dead_letters_loaded_at is None:
            continue  # the next micro-batch loads them in any case
        if kind is Kind.DEAD_LETTERS and batch.staged.has_let_go(kind):
            continue  # and of the table's rows of them
        staged = batch.staged.fingerprints.get(kind, ())
        database = worker.settings.clickhouse_database
        found = read_fingerprints(worker.clickhouse, database, kind.value, batch.batch_id)
        proof = compare(staged, found)
        if proof is Proof.OTHER:
            return f"{database}.{kind} holds rows of it: delete them first, then repair"
        if proof is Proof.NOTHING:
            lost.append(kind)
    if not lost:
        return "nothing of it is lost"
    for kind in lost:
        file = batch.staged.file(kind)
        if file is None:
            return f"the ledger names no file of its {kind}"
        try:
            check_staged(worker.lake, file)
        except StagedFileLetGo as error:
            return f"{error}: only a backup of ClickHouse has its rows"
        except StagedFileDamaged as error:
            return f"{error}: bring the file back first"
    return ""
