"""Batches that wait for a person, and what can be decided of them.

    gap, suspect ─retry_batch─▶ planned, loading
    held ─release_batch─▶ staged;  ─restage_batch─▶ staged, or held once more
    a redrive ─give_up_redrive─▶ superseded

Invariant: the decision is one compare-and-swap in the ledger; the next worker does the rest.
"""

from __future__ import annotations

from assets.pipeline.batch import WAITING, Batch, Kind, State
from assets.pipeline.errors import BatchError, Gap, TopicReplaced
from assets.pipeline.mirror import mirror
from assets.pipeline.prove import read_fingerprints
from assets.pipeline.read import lost_below
from assets.pipeline.staged_files import delete_earlier_attempts, delete_unregistered
from assets.pipeline.staging import stage_one
from assets.pipeline.worker import Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger.attempts import attempts_of


def retry_batch(worker: Worker, batch_id: str, accept_gap: bool = False) -> State:
    """Give a batch that waits for a person back to the workers; gives its new state.

    With `accept_gap`, records that Kafka no longer has count as absent from now on.
    """
    batch = ledger_batches.read_batch(worker.ledger, batch_id)
    again = {State.GAP: State.PLANNED, State.SUSPECT: State.LOADING}
    if batch.state is State.HELD:
        raise BatchError(
            f"batch {batch_id} is held: `tidemark release {batch_id}` publishes it as it is, "
            f"`tidemark retry {batch_id} --restage` stages it again"
        )
    if batch.state not in again:
        raise BatchError(f"batch {batch_id} is {batch.state}: it does not wait for anybody")
    if accept_gap and (batch.state is not State.GAP or batch.is_redrive):
        raise BatchError(f"batch {batch_id} is {batch.state}: there is no gap to accept")
    with worker.lease() as lease:
        if accept_gap:
            skips = lost_below(worker.topic_of(batch), batch.topic_id, batch.ranges)
            ledger_batches.accept_gap(worker.ledger, lease, batch_id, skips)
        else:
            ledger_batches.give_back(
                worker.ledger, lease, batch_id, batch.state, again[batch.state]
            )
    return again[batch.state]


def release_batch(worker: Worker, batch_id: str) -> Batch:
    """Let a held batch go on to loading, as it was staged."""
    _check_held(worker, batch_id, "be released")
    with worker.lease() as lease:
        ledger_batches.give_back(worker.ledger, lease, batch_id, State.HELD, State.STAGED)
        batch = ledger_batches.read_batch(worker.ledger, batch_id)
        attempts = [one for one in attempts_of(worker.ledger, batch_id) if one.stage == "stage"]
        delete_unregistered(batch, len(attempts), worker.lake)
    return batch


def restage_batch(worker: Worker, batch_id: str) -> Batch:
    """Stage a held batch again with today's code, from Kafka; it may have to be held again.

    What was staged before stays registered until the new files take its place: when Kafka no
    longer has the records, or the worker dies, the batch is held as it was.
    """
    batch = _check_held(worker, batch_id, "be staged again")
    with worker.lease() as lease:
        try:
            return stage_one(worker, lease, batch)
        except (Gap, TopicReplaced) as error:
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
        attempts = attempts_of(worker.ledger, batch_id)
        delete_earlier_attempts(batch, len(attempts) + 1, worker.lake)
        batch = ledger_batches.read_batch(worker.ledger, batch_id)
        mirror(worker.clickhouse, database, [batch], attempts)
    return batch


def _check_held(worker: Worker, batch_id: str, to: str) -> Batch:
    batch = ledger_batches.read_batch(worker.ledger, batch_id)
    if batch.state is not State.HELD:
        raise BatchError(f"batch {batch_id} is {batch.state}: only a held batch can {to}")
    return batch
