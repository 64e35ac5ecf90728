"""Filling: the batches of a date brought into a table beside `events`, and proved to be there.

What is there already is found by the proof, as in loading: whoever was killed while filling goes on
from where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from assets.pipeline.batch import Batch, Fingerprint, Kind, StagedFile
from assets.pipeline.clickhouse import known_settings, named_errors
from assets.pipeline.errors import ProofFailed, StagedFileDamaged, StagedFileLetGo
from assets.pipeline.load import insert, one_block, token
from assets.pipeline.prove import Proof, compare, describe_difference, read_fingerprints_of
from assets.pipeline.shadow import SHADOW
from assets.pipeline.staged_files import check_staged
from assets.pipeline.swap import rows_by_batch
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import in_parts
from orchestration.ledger.rebuilds import Rebuild, Way


def fill(worker: Worker, found: Rebuild, table: str, batches: Sequence[Batch]) -> None:
    """Bring what is missing of these batches into a table, each by one insert, and prove it."""
    day, there = found.arrival_date, prints_in(worker, table, batches)
    missing = []
    for batch in batches:
        proof = compare(_staged(batch), there.get(batch.batch_id, ()))
        if proof is Proof.OTHER:
            raise ProofFailed(
                f"{table} holds a part of batch {batch.batch_id}: "
                f"`tidemark backfill cancel {day}`, then rebuild again"
            )
        if proof is Proof.NOTHING:
            missing.append(batch)
    database = worker.settings.clickhouse_database
    for number, batch in enumerate(missing, 1):
        try:
            file = checked_file(worker, batch)
        except StagedFileDamaged as error:
            if table != SHADOW:
                raise
            if found.way is not Way.REPLAY:
                if isinstance(error, StagedFileLetGo):
                    raise
                raise StagedFileDamaged(
                    f"batch {batch.batch_id} cannot be rebuilt: {error}. The table is as it was. "
                    "Bring the file back and say the same again; or give this one up "
                    f"(`tidemark backfill cancel {day}`) and read its records again, if Kafka has "
                    f"them (`tidemark backfill replay {day} --preview`)"
                ) from error
            _carry_over(worker, found, batch)
            continue
        named = f"{token(batch, file)}:{table}:{found.rebuild_id}:{found.state}"
        client = worker.clickhouse
        insert(client, database, table, worker.lake, file, batch, worker.run_id, named)
        worker.say(f"{day}: batch {batch.batch_id} in {table}, {number:,} of {len(missing):,}")
    prove_each(worker, table, missing)


def _carry_over(worker: Worker, found: Rebuild, batch: Batch) -> None:
    """Let the rows of a batch that cannot be replayed stay: from `events` into the shadow.

    Raises StagedFileDamaged when they are not all there.
    """
    day, database = found.arrival_date, worker.settings.clickhouse_database
    there = prints_in(worker, "events", [batch]).get(batch.batch_id, ())
    if compare(_staged(batch), there) is not Proof.ALL:
        raise StagedFileDamaged(
            f"of batch {batch.batch_id} neither the lake nor Kafka has the records, and events has "
            f"not all of its rows: {describe_difference(_staged(batch), there)}. Bring its file "
            f"back, then go on; or `tidemark backfill cancel {day}` leaves the table as it is"
        )
    named = f"{batch.batch_id}:carried:{SHADOW}:{found.rebuild_id}:{found.state}"
    rows = sum(print_.rows for print_ in _staged(batch))
    with named_errors(f"carrying over {batch.batch_id}"):
        worker.clickhouse.command(
            f"INSERT INTO {database}.{SHADOW} SELECT * FROM {database}.events "
            "WHERE arrival_date = {day:Date} AND _batch_id = {batch_id:String}",
            parameters={"day": day, "batch_id": batch.batch_id},
            settings=known_settings(
                worker.clickhouse, {**one_block(rows), "insert_deduplication_token": named}
            ),
        )
    worker.say(f"{day}: batch {batch.batch_id} keeps its {rows:,} rows, they are carried over")


def prove_whole(worker: Worker, table: str, day: date, batches: Sequence[Batch]) -> None:
    """Raise ProofFailed unless the shadow, or a copy of it, holds these batches and no more."""
    found = sum(rows_by_batch(worker, table, day).values())
    if found != rows_of(batches):
        raise ProofFailed(
            f"{table} holds {found:,} rows of {day}, staged are {rows_of(batches):,}: "
            f"`tidemark backfill cancel {day}`, then rebuild again"
        )


def prove_each(worker: Worker, table: str, batches: Sequence[Batch]) -> None:
    """Raise ProofFailed unless a table holds all of each of these batches."""
    there = prints_in(worker, table, batches)
    for batch in batches:
        staged, found = _staged(batch), there.get(batch.batch_id, ())
        if compare(staged, found) is not Proof.ALL:
            raise ProofFailed(
                f"batch {batch.batch_id} does not balance in {table}: "
                f"{describe_difference(staged, found)}; `tidemark reconcile` names the offsets"
            )


def prints_in(
    worker: Worker, table: str, batches: Sequence[Batch]
) -> dict[str, tuple[Fingerprint, ...]]:
    """What a table has of these batches, by batch."""
    client, database = worker.clickhouse, worker.settings.clickhouse_database
    found: dict[str, tuple[Fingerprint, ...]] = {}
    for some in in_parts([batch.batch_id for batch in batches]):
        found |= read_fingerprints_of(client, database, table, some)
    return found


def checked_file(worker: Worker, batch: Batch) -> StagedFile:
    """The staged events of a batch. Raises StagedFileDamaged unless they are as registered."""
    file = batch.staged.file(Kind.EVENTS) if batch.staged else None
    assert file is not None
    check_staged(worker.lake, file)
    return file


def rows_of(batches: Sequence[Batch]) -> int:
    """How many events these batches have staged."""
    return sum(print_.rows for batch in batches for print_ in _staged(batch))


def _staged(batch: Batch) -> tuple[Fingerprint, ...]:
    assert batch.staged is not None
    return batch.staged.fingerprints[Kind.EVENTS]
