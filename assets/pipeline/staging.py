"""Staging batches: those that were planned before, then new ones up to the watermark.

    planned ─▶ read, judged, written (stage.py) ─▶ registered (registering.py): staged, held, a gap
                        the one before it is loaded meanwhile (early_loads.py) ◀─┘

With several stagers, and more to stage than one batch, so many are staged at once: see
side_by_side.py.
"""

from __future__ import annotations

import time

from assets.pipeline.batch import Batch, Kind, State
from assets.pipeline.circuit import LOAD, STAGE
from assets.pipeline.early_loads import EarlyLoads
from assets.pipeline.errors import (
    BatchError,
    KafkaAway,
    KafkaRefusesUs,
    LaneTrouble,
    LoadingPaused,
    StagingPaused,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.key_upkeep import keep_index
from assets.pipeline.lanes import (
    check_ledger,
    open_lanes,
    plan_next,
    see_watermark,
)
from assets.pipeline.registering import stage_one
from assets.pipeline.room import why_no_room
from assets.pipeline.side_by_side import SideBySide, is_worth_it
from assets.pipeline.stager_pool import StagerPool
from assets.pipeline.topic import Topic
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger.leases import Lease

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
    with (
        worker.lease() as lease,
        EarlyLoads(worker, lease, loads_early) as early,
        worker.key_copies,
        StagerPool(worker) as pool,
    ):
        end = time.monotonic() + _STAGING_LIMIT_S
        for topic in worker.topics.values():
            if not worker.stages(topic.name):
                continue
            historical = topic.name == worker.settings.historical_topic
            until = min(end, time.monotonic() + _HISTORICAL_LIMIT_S) if historical else end
            try:
                with aside.errors():
                    _stage_topic(worker, lease, topic, until, aside, staged, early, pool)
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
    pool: StagerPool,
) -> None:
    """Stage one topic's batches; plan no more after `until`, but one batch in any case."""
    watermark = see_watermark(worker, topic)
    circuit = worker.circuit(lease, STAGE)
    unfinished = ledger_batches.unfinished_batches(worker.ledger, topic.name)
    begun = circuit.due([batch for batch in unfinished if batch.state is State.PLANNED])

    def keep_index_of(batch: Batch) -> None:
        if len(staged) % _INDEX_KEPT_EVERY == 0:
            with aside.errors():
                keep_index(worker.ledger, worker.lake, [batch.arrival_date])

    if watermark is not None and is_worth_it(worker, pool, topic, watermark, begun):
        SideBySide(worker, lease, pool, aside, early, keep_index_of).stage(
            topic, watermark, begun, until, lambda: _has_room(worker, lease, topic), staged
        )
        return
    for batch in begun:
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
        keep_index_of(planned)
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
