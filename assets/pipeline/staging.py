"""Staging batches: those that were planned before, then new ones up to the watermark.

    planned ─▶ read, judged, written (stage.py) ─▶ registered: staged, or held, or a gap
                        the one before it is loaded meanwhile (early_loads.py) ◀─┘

Invariant: files count from the moment the ledger names them; a worker that has lost its lease
registers nothing.
"""

from __future__ import annotations

import time

import pyarrow as pa
from sqlalchemy import Connection

from assets.pipeline.batch import Batch, KeyFile, Kind, Staged, State
from assets.pipeline.circuit import LOAD, STAGE, Circuit
from assets.pipeline.clock import StageClock
from assets.pipeline.early_loads import EarlyLoads
from assets.pipeline.errors import (
    BatchError,
    Gap,
    KafkaAway,
    KafkaRefusesUs,
    LaneTrouble,
    LoadingPaused,
    StagedFileDamaged,
    StagingPaused,
    TopicReplaced,
    is_given_up,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.garbage import searched_rarely
from assets.pipeline.hold import reason_to_hold
from assets.pipeline.key_upkeep import keep_index, without_batch
from assets.pipeline.lanes import (
    check_ledger,
    open_lanes,
    plan_next,
    see_watermark,
)
from assets.pipeline.leftovers import delete_leftovers
from assets.pipeline.letters import Outcomes, stage_letters
from assets.pipeline.room import why_no_room
from assets.pipeline.sources import (
    check_source,
    check_unchanged,
    chunks_of,
    import_of,
    judge_of,
)
from assets.pipeline.stage import stage
from assets.pipeline.topic import Topic
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger import redrives as ledger_redrives
from orchestration.ledger.attempts import attempt
from orchestration.ledger.gaps import KAFKA, gap_found
from orchestration.ledger.keys import KeySwap, swap_key_files
from orchestration.ledger.leases import Lease, assert_held

_STAGING_LIMIT_S = 900.0
"""How long a run goes on planning: then it loads what it has, and the next tick goes on."""
_HISTORICAL_LIMIT_S = 60.0
"""How long of it goes to historical events at most: fresh ones wait for the next run meanwhile."""
_INDEX_KEPT_EVERY = 32


def stage_batches(
    worker: Worker, held: list[BatchError] | None = None, *, loads_early: bool = False
) -> list[Batch]:
    """Stage what was planned before, then plan and stage up to the watermarks seen now.

    A batch that cannot be staged holds up no other; the first such error is raised at the end.
    What is wrong with lanes or single batches goes into `held` instead, for a caller who loads
    before it tells; so does that Kafka is away, or refuses us. While more is staged than the disk
    is to hold, no more is planned. With `loads_early`, while one batch is staged those before it
    are loaded, as far as nothing is in the way of that; load_batches has to follow in any case.
    """
    staged: list[Batch] = []
    aside = PutAside(held)
    with worker.lease() as lease, EarlyLoads(worker, lease, loads_early) as early:
        end = time.monotonic() + _STAGING_LIMIT_S
        for topic in worker.topics.values():
            if not worker.stages(topic.name):
                continue
            historical = topic.name == worker.settings.historical_topic
            until = min(end, time.monotonic() + _HISTORICAL_LIMIT_S) if historical else end
            try:
                with aside.errors():
                    _stage_topic(worker, lease, topic, until, aside, staged, early)
            except KafkaAway as error:
                is_main = topic.name == worker.settings.topic
                if isinstance(error, KafkaRefusesUs):
                    told = f"topic {topic.name} cannot be read: {error}"
                    aside.keep(error if is_main else LaneTrouble(told))
                elif is_main:
                    aside.keep(error)
                    break
                else:
                    worker.say(f"topic {topic.name} waits for the next run: {error}")
            failpoint("between-topics")
        if staged:
            with aside.errors():
                keep_index(worker.ledger, worker.lake, [batch.arrival_date for batch in staged])
    aside.raise_first()
    return staged


def stage_these(worker: Worker, lease: Lease, batches: list[Batch], aside: PutAside) -> list[Batch]:
    """Stage some planned batches, under the caller's lease; gives those that were staged."""
    staged: list[Batch] = []
    circuit = worker.circuit(lease, STAGE)
    for batch in batches:
        with aside.errors():
            staged.append(stage_one(worker, lease, circuit, batch))
    return staged


def _stage_topic(
    worker: Worker,
    lease: Lease,
    topic: Topic,
    until: float,
    aside: PutAside,
    staged: list[Batch],
    early: EarlyLoads,
) -> None:
    """Stage one topic's batches; plan no more after `until`, but one batch in any case."""
    watermark = see_watermark(worker, topic)
    circuit = worker.circuit(lease, STAGE)
    begun = ledger_batches.unfinished_batches(worker.ledger, topic.name)
    for batch in circuit.due([batch for batch in begun if batch.state is State.PLANNED]):
        if not _has_room(worker, lease, topic):
            return
        circuit.check()
        worker.say(f"batch {batch.batch_id}: taken up again after its plan")
        early.take(staged)
        with aside.errors():
            staged.append(stage_one(worker, lease, circuit, batch))
    if watermark is None:
        return
    check_ledger(worker, lease, topic, watermark)
    open_lanes(worker, lease, topic, watermark)
    while _has_room(worker, lease, topic):
        circuit.check()
        planned = plan_next(worker, lease, topic, watermark)
        if planned is None:
            return
        early.take(staged)
        with aside.errors():
            staged.append(stage_one(worker, lease, circuit, planned))
        if len(staged) % _INDEX_KEPT_EVERY == 0:
            with aside.errors():
                keep_index(worker.ledger, worker.lake, [planned.arrival_date])
        if time.monotonic() >= until:
            return


def _has_room(worker: Worker, lease: Lease, topic: Topic) -> bool:
    """Whether more may be staged. Raises StagingPaused when loading alone will not make room."""
    full = why_no_room(worker.settings, worker.ledger, worker.lake)
    if full is None:
        return True
    told = f"nothing more of {topic.name} is planned"
    circuit = worker.circuit(lease, LOAD, Kind.EVENTS)
    try:
        circuit.check()
    except LoadingPaused as paused:
        raise StagingPaused(f"{told}: {full}. {paused}") from None
    if full.loading_helps:
        to_load = [b for b in worker.unfinished() if b.state in (State.STAGED, State.LOADING)]
        if circuit.due(to_load):
            worker.say(f"{told} before this is loaded: {full}")
            return False
        told += ", and none of what is staged is due (`tidemark status` says what it waits for)"
    raise StagingPaused(f"{told}: {full}")


def stage_one(worker: Worker, lease: Lease, circuit: Circuit, batch: Batch) -> Batch:
    """Stage a batch that is planned, or one that is held once more."""
    ledger = worker.ledger
    clock = StageClock()
    with attempt(ledger, batch.batch_id, STAGE, worker.run_id) as number:
        try:
            with circuit.one(batch), searched_rarely():
                staged = _stage_and_register(worker, lease, batch, number, clock)
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
    ledger_batches.add_timings(ledger, batch.batch_id, clock.timings())
    balance = staged.balance
    worker.say(
        f"batch {batch.batch_id}: staged {balance.ok:,} ok, {balance.rejected:,} rejected, "
        f"{balance.duplicate:,} duplicate, {balance.tombstone:,} tombstone, "
        f"{balance.absent:,} absent; "
        + ", ".join(f"{file.path} ({file.bytes:,} bytes)" for file in staged.files)
    )
    batch = ledger_batches.read_batch(ledger, batch.batch_id)
    delete_leftovers(ledger, worker.lake, batch, number)
    return batch


def _stage_and_register(
    worker: Worker, lease: Lease, batch: Batch, number: int, clock: StageClock
) -> Staged:
    ledger, settings = worker.ledger, worker.settings
    outcomes: Outcomes = {}
    if batch.is_redrive:
        staged, key_file, outcomes = _staged_letters(worker, lease, batch, number, clock)
    else:
        staged, key_file = _staged(worker, lease, batch, number, clock)
    failpoint("after-stage")
    index = KeySwap()
    if number > 1:  # else the index has nothing of it, and need not be opened once more
        index = without_batch(ledger, worker.lake, batch, worker.say, worker.loaded_keys)

    def also(connection: Connection) -> None:
        if batch.is_redrive:
            ledger_redrives.register_outcomes(connection, batch.batch_id, outcomes)
        swap_key_files(connection, index)

    hold = reason_to_hold(
        batch.batch_id, staged, settings.hold_over_percent, settings.hold_over_records
    )
    ledger_batches.register_staged(
        ledger,
        lease,
        batch.batch_id,
        staged,
        key_file,
        TRANSFORM_VERSION,
        hold=hold,
        before=batch.state,
        also=also,
    )
    failpoint("after-register")
    return staged


def _staged(
    worker: Worker, lease: Lease, batch: Batch, number: int, clock: StageClock
) -> tuple[Staged, KeyFile | None]:
    check_source(worker, batch)
    seen = worker.index_for(batch)

    def may_publish() -> None:
        check_unchanged(worker, batch)
        assert_held(worker.ledger, lease)

    try:
        return stage(
            batch,
            chunks_of(worker, batch),
            worker.lake,
            seen,
            clock,
            attempt=number,
            may_publish=may_publish,
            judge_chunk=judge_of(worker, batch),
        )
    finally:
        # Else each batch of a backlog starts on top of what the one before it left cached.
        pa.default_memory_pool().release_unused()


def _staged_letters(
    worker: Worker, lease: Lease, batch: Batch, number: int, clock: StageClock
) -> tuple[Staged, KeyFile | None, Outcomes]:
    """The same for a redrive, from the dead letters in the lake; and what became of each."""
    ledger = worker.ledger
    letters = ledger_redrives.letters_of(ledger, batch.batch_id)
    seen = worker.index_for(batch)
    try:
        return stage_letters(
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
