"""One batch from its plan to its files' names in the ledger.

    planned ─make─▶ whole files, which nobody names ─register─▶ staged, or held, or a gap

Whoever makes the files, this process or a stager (stager.py), they are registered here. Invariant:
files count from the moment the ledger names them; a worker that has lost its lease registers
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from sqlalchemy import Connection

from assets.pipeline.batch import Batch, KeyFile, Staged, State, Timing
from assets.pipeline.circuit import STAGE, Circuit
from assets.pipeline.clock import StageClock
from assets.pipeline.compare_keys import Comparison, IndexMoved
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.errors import (
    BatchError,
    Gap,
    StagedFileDamaged,
    TopicReplaced,
    is_given_up,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.garbage import searched_rarely
from assets.pipeline.hold import reason_to_hold
from assets.pipeline.key_upkeep import Window, without_batch
from assets.pipeline.leftovers import delete_leftovers
from assets.pipeline.letters import Outcomes, stage_letters
from assets.pipeline.read import Chunk
from assets.pipeline.sources import (
    check_source,
    check_unchanged,
    chunks_of,
    import_of,
    judge_of,
)
from assets.pipeline.stage import stage
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger import redrives as ledger_redrives
from orchestration.ledger.attempts import attempt
from orchestration.ledger.gaps import KAFKA, gap_found
from orchestration.ledger.keys import KeySwap, swap_key_files
from orchestration.ledger.leases import Lease, assert_held


@dataclass(frozen=True)
class Made:
    """Files of a batch that are whole, before the ledger names them, and what making them took.

    `window` is what its records were compared with, where others may have been registered since.
    """

    staged: Staged
    key_file: KeyFile | None
    timings: Mapping[str, Timing]
    code_version: str = field(default_factory=lambda: TRANSFORM_VERSION)
    outcomes: Outcomes = field(default_factory=dict)
    window: Window | None = None


def stage_one(worker: Worker, lease: Lease, circuit: Circuit, batch: Batch) -> Batch:
    """Stage a batch that is planned, or one that is held once more."""
    with attempt(worker.ledger, batch.batch_id, STAGE, worker.run_id) as number:
        made = register(
            worker, lease, circuit, batch, number, lambda: make(worker, lease, batch, number)
        )
    return tell_registered(worker, batch, number, made)


def make(worker: Worker, lease: Lease, batch: Batch, number: int) -> Made:
    """Make the files of an attempt at staging in this process."""
    with searched_rarely():
        if batch.is_redrive:
            return _made_of_letters(worker, lease, batch, number)
        check_source(worker, batch)
        return make_from_records(worker, lease, batch, number, worker.index_for(batch))


def register(
    worker: Worker,
    lease: Lease,
    circuit: Circuit,
    batch: Batch,
    number: int,
    making: Callable[[], Made],
) -> Made:
    """Let an attempt's files be made, and name them in the ledger; or say there what went wrong."""
    ledger = worker.ledger
    try:
        with circuit.one(batch):
            made = making()
            failpoint("after-stage")
            _register(worker, lease, batch, number, made)
            failpoint("after-register")
            return made
    except (Gap, TopicReplaced) as error:
        if batch.state is State.PLANNED:
            missing = error.missing if isinstance(error, Gap) else batch.readable
            gap_found(
                ledger,
                lease,
                batch.batch_id,
                KAFKA,
                ", ".join(map(str, missing)),
                sum(map(len, missing)),
                str(error),
            )
        raise
    except BatchError as error:
        if batch.state is State.PLANNED and is_given_up(error):
            ledger_batches.set_state(ledger, lease, batch.batch_id, State.FAILED, str(error))
        raise


def tell_registered(worker: Worker, batch: Batch, number: int, made: Made) -> Batch:
    """After the attempt: say what came of it, and delete what earlier ones left."""
    ledger_batches.add_timings(worker.ledger, batch.batch_id, made.timings)
    balance = made.staged.balance
    worker.say(
        f"batch {batch.batch_id}: staged {balance.ok:,} ok, {balance.rejected:,} rejected, "
        f"{balance.duplicate:,} duplicate, {balance.tombstone:,} tombstone, "
        f"{balance.absent:,} absent; "
        + ", ".join(f"{file.path} ({file.bytes:,} bytes)" for file in made.staged.files)
    )
    batch = ledger_batches.read_batch(worker.ledger, batch.batch_id)
    delete_leftovers(worker.ledger, worker.lake, batch, number)
    return batch


def make_from_records(
    worker: Worker,
    lease: Lease,
    batch: Batch,
    number: int,
    seen: SeenKeys,
    stays: Callable[[], None] | None = None,
) -> Made:
    """The same in any process, of a batch whose records were found to be there.

    `stays` is asked now and then, and before the files appear; it does not return when they must
    not.
    """
    clock = StageClock()
    chunks = chunks_of(worker, batch)
    if stays is not None:
        chunks = _as_long_as(stays, chunks)

    def may_publish() -> None:
        if stays is not None:
            stays()
        check_unchanged(worker, batch)
        assert_held(worker.ledger, lease)

    try:
        staged, key_file = stage(
            batch,
            chunks,
            worker.lake,
            seen,
            clock,
            attempt=number,
            may_publish=may_publish,
            judge_chunk=judge_of(worker, batch),
            share=worker.share,
        )
    finally:
        # Else each batch of a backlog starts on top of what the one before it left cached.
        pa.default_memory_pool().release_unused()
    return Made(staged, key_file, clock.timings())


def _as_long_as(stays: Callable[[], None], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    for chunk in chunks:
        stays()
        yield chunk


def _made_of_letters(worker: Worker, lease: Lease, batch: Batch, number: int) -> Made:
    """The same for a redrive, from the dead letters in the lake; and what became of each."""
    ledger, clock = worker.ledger, StageClock()
    letters = ledger_redrives.letters_of(ledger, batch.batch_id)
    seen = worker.index_for(batch)
    try:
        staged, key_file, outcomes = stage_letters(
            batch,
            letters,
            worker.old_batches(batch),
            worker.lake,
            seen,
            clock,
            attempt=number,
            may_publish=lambda: assert_held(ledger, lease),
            of=import_of(worker, batch),
        )
    except StagedFileDamaged as error:
        raise Gap(
            f"the dead letters to redrive cannot be read: {error}. Bring the file back and "
            f"`tidemark retry {batch.batch_id}`, or end it with "
            f"`tidemark redrive --give-up {batch.batch_id}`"
        ) from error
    return Made(staged, key_file, clock.timings(), outcomes=outcomes)


def _register(worker: Worker, lease: Lease, batch: Batch, number: int, made: Made) -> None:
    if made.window is None:
        _name_files(worker, lease, batch, number, made, lambda connection: None)
        return
    comparison = Comparison(worker, batch, made.key_file, made.window)
    while True:
        comparison.catch_up()
        failpoint("compared")
        try:
            _name_files(worker, lease, batch, number, made, comparison.check)
        except IndexMoved:
            continue
        return


def _name_files(
    worker: Worker,
    lease: Lease,
    batch: Batch,
    number: int,
    made: Made,
    check: Callable[[Connection], None],
) -> None:
    ledger, settings = worker.ledger, worker.settings
    index = KeySwap()
    if number > 1:  # else the index has nothing of it, and need not be opened once more
        index = without_batch(ledger, worker.lake, batch, worker.say, worker.loaded_keys)

    def also(connection: Connection) -> None:
        check(connection)
        if batch.is_redrive:
            ledger_redrives.register_outcomes(connection, batch.batch_id, made.outcomes)
        swap_key_files(connection, index)

    hold = reason_to_hold(
        batch.batch_id, made.staged, settings.hold_over_percent, settings.hold_over_records
    )
    if hold and batch.is_import:
        hold += f". If the file is the wrong one: `tidemark import --discard {batch.topic}`"
    ledger_batches.register_staged(
        ledger,
        lease,
        batch.batch_id,
        made.staged,
        made.key_file,
        made.code_version,
        hold=hold,
        before=batch.state,
        also=also,
    )
