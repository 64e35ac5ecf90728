"""The worker: carries batches through their stages, from whatever state it finds them in.

    stage_batches   finishes planned batches, then plans and stages up to the watermark
    load_batches    loads, proves and commits what is staged
    load_dead_letters  the same for rejected records

Each takes the topics by urgency: the main one first, what is historical last and for a bounded
time. What is wrong with a lane, or with one batch, holds up no other.

Each holds the lease while it works: one for all topics, because they share the duplicate index.
Every stage of every batch is an attempt in the ledger before it begins. A crash anywhere leaves a
state from which the next worker goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from assets.pipeline import plan
from assets.pipeline.batch import Batch, KeyFile, Kind, Staged, State
from assets.pipeline.clickhouse import connect, make_tables
from assets.pipeline.clock import StageClock
from assets.pipeline.commit import commit_offsets
from assets.pipeline.errors import (
    BatchError,
    Gap,
    KafkaAway,
    LaneTrouble,
    LedgerBehind,
    ProofFailed,
    StagedFileDamaged,
    TopicMissing,
    TopicReplaced,
    TransientError,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.hold import reason_to_hold
from assets.pipeline.key_upkeep import keep_index, mend_index, open_index
from assets.pipeline.lake import Lake
from assets.pipeline.load import load
from assets.pipeline.mirror import mirror, mirrored_ends
from assets.pipeline.read import check_readable, lost_below, read_ranges
from assets.pipeline.stage import stage
from assets.pipeline.staged_files import delete_earlier_attempts, delete_unregistered
from assets.pipeline.topic import Topic, topics_of
from assets.pipeline.version import TRANSFORM_VERSION
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger.attempts import attempt, attempts_of
from orchestration.ledger.connection import now_us
from orchestration.ledger.leases import Lease, assert_held, held_lease
from orchestration.settings import Settings

_ASSUMED_RECORD_BYTES = 1_500.0
_STAGING_LIMIT_S = 900.0
"""How long a run goes on planning: then it loads what it has, and the next tick goes on."""
_HISTORICAL_LIMIT_S = 60.0
"""How long of it goes to historical events at most: fresh ones wait for the next run meanwhile."""
_INDEX_KEPT_EVERY = 32
_REFUSALS = 3
"""Attempts at loading that ClickHouse refuses before a batch waits for a person."""


@dataclass
class Worker:
    """What the stages need. `say` gets one line for each important step."""

    settings: Settings
    ledger: Engine
    run_id: str
    say: Callable[[str], None] = print

    @cached_property
    def topics(self) -> dict[str, Topic]:
        """The topics' metadata, the most urgent first."""
        return topics_of(self.settings.kafka_client, self.settings.topics_by_urgency)

    def topic_of(self, batch: Batch) -> Topic:
        """The metadata of a batch's topic."""
        return self.topics.get(batch.topic) or Topic(self.settings.kafka_client, batch.topic)

    def unfinished(self) -> list[Batch]:
        """What a worker can carry on: the most urgent topic's first, and of each the oldest."""
        urgency = self.settings.topics_by_urgency
        batches = ledger_batches.unfinished_batches(self.ledger, *urgency)
        return sorted(batches, key=lambda batch: urgency.index(batch.topic))

    @cached_property
    def lake(self) -> Lake:
        """Where staged files go."""
        return Lake(self.settings.lake)

    @cached_property
    def clickhouse(self) -> Client:
        """ClickHouse, with the tables in place."""
        settings = self.settings
        client = connect(
            settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
        )
        make_tables(client, settings.clickhouse_database)
        return client

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """The lease on all topics, for the length of a with-block."""
        name = f"topic/{self.settings.topic}"
        with held_lease(self.ledger, name, self.settings.lease_seconds) as lease:
            yield lease


def stage_batches(worker: Worker, held: list[LaneTrouble] | None = None) -> list[Batch]:
    """Stage what was planned before, then plan and stage up to the watermarks seen now.

    A batch that cannot be staged holds up no other; the first such error is raised at the end.
    What is wrong with lanes goes into `held` instead, for a caller who loads before it tells.
    """
    staged: list[Batch] = []
    aside = PutAside(held)
    with worker.lease() as lease:
        end = time.monotonic() + _STAGING_LIMIT_S
        for topic in worker.topics.values():
            historical = topic.name == worker.settings.historical_topic
            until = min(end, time.monotonic() + _HISTORICAL_LIMIT_S) if historical else end
            with aside.errors(), _side_topic_may_be_away(worker, topic):
                _stage_topic(worker, lease, topic, until, aside, staged)
            failpoint("between-topics")
        if staged:
            keep_index(worker.ledger, worker.lake, [batch.arrival_date for batch in staged])
    aside.raise_first()
    return staged


@contextmanager
def _side_topic_may_be_away(worker: Worker, topic: Topic) -> Iterator[None]:
    """Kafka away for the main topic stops a run; for one beside it, what is staged goes on."""
    try:
        yield
    except KafkaAway as error:
        if topic.name == worker.settings.topic:
            raise
        worker.say(f"topic {topic.name} waits for the next run: {error}")


def _stage_topic(
    worker: Worker, lease: Lease, topic: Topic, until: float, aside: PutAside, staged: list[Batch]
) -> None:
    """Stage one topic's batches; plan no more after `until`, but one batch in any case."""
    watermark = _watermark(worker, topic)
    for batch in ledger_batches.unfinished_batches(worker.ledger, topic.name):
        if batch.state is State.PLANNED:
            worker.say(f"batch {batch.batch_id}: taken up again after its plan")
            with aside.errors():
                staged.append(_stage_one(worker, lease, batch))
    if watermark is None:
        return
    _check_ledger(worker, topic, watermark)
    _open_lanes(worker, lease, topic, watermark)
    while (planned := _plan_one(worker, lease, topic, watermark)) is not None:
        with aside.errors():
            staged.append(_stage_one(worker, lease, planned))
        if len(staged) % _INDEX_KEPT_EVERY == 0:
            keep_index(worker.ledger, worker.lake, [planned.arrival_date])
        if time.monotonic() >= until:
            break


def _watermark(worker: Worker, topic: Topic) -> plan.Watermark | None:
    """The topic's ends; None for one beside the main topic that nobody has made."""
    try:
        return plan.see_watermark(topic)
    except TopicMissing as error:
        if topic.name == worker.settings.topic:
            raise
        worker.say(f"{error}: there is nothing of it to read")
        return None


def load_batches(worker: Worker) -> list[Batch]:
    """Load and prove every staged batch, then commit offsets.

    A batch that cannot be loaded holds up no other; the first such error is raised at the end.
    """
    loaded: list[Batch] = []
    aside = PutAside()
    worker.clickhouse  # noqa: B018  # when it is away, or refuses us, no batch is to blame
    with worker.lease() as lease:
        unfinished = worker.unfinished()
        # Before any row: a ledger that is restored from a backup then meets what it has forgotten.
        due = [batch for batch in unfinished if batch.state in (State.STAGED, State.LOADING)]
        mirror(worker.clickhouse, worker.settings.clickhouse_database, due, [])
        for batch in unfinished:
            with aside.errors():
                if batch.state in (State.STAGED, State.LOADING):
                    _load_one(worker, lease, batch)
                if batch.state in (State.STAGED, State.LOADING, State.LOADED):
                    loaded.append(batch)
        for topic in dict.fromkeys(batch.topic for batch in loaded):
            _commit(worker, lease, [batch for batch in loaded if batch.topic == topic])
    aside.raise_first()
    return _read_again(worker, loaded)


def load_dead_letters(worker: Worker) -> list[Batch]:
    """Load and prove the dead letters of every loaded batch, and mirror the ledger."""
    done: list[Batch] = []
    aside = PutAside()
    with worker.lease() as lease:
        for batch in worker.unfinished():
            if batch.state in (State.LOADED, State.COMMITTED):
                with aside.errors():
                    _load_dead_letters_of(worker, lease, batch)
                    done.append(batch)
        waiting = ledger_batches.waiting_for_a_person(worker.ledger, *worker.settings.topics)
        told = [*done, *waiting]
        failpoint("after-dead-letters")
        mirror(
            worker.clickhouse,
            worker.settings.clickhouse_database,
            told,
            [attempt for batch in told for attempt in attempts_of(worker.ledger, batch.batch_id)],
        )
        failpoint("after-mirror")
        # Only now: until then the next worker does all of this again.
        for batch in done:
            ledger_batches.set_dead_letters_loaded(worker.ledger, lease, batch.batch_id)
    aside.raise_first()
    return _read_again(worker, done)


class PutAside:
    """Errors of single batches and lanes, kept until the others are through.

    What is worth another try is not kept but raised at once: it would meet the others as well. So
    is a ledger that is not the right one. Trouble with lanes goes into `held`, where it is given.
    """

    def __init__(self, held: list[LaneTrouble] | None = None) -> None:
        self._first: BatchError | None = None
        self._held = held

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Keep what is raised inside, unless it passes by itself."""
        try:
            yield
        except (TransientError, LedgerBehind):
            raise
        except BatchError as error:
            if self._held is not None and isinstance(error, LaneTrouble):
                self._held.append(error)
            else:
                self._first = self._first or error

    def raise_first(self) -> None:
        """Raise the first error that was kept."""
        if self._first is not None:
            raise self._first


def _commit(worker: Worker, lease: Lease, loaded: list[Batch]) -> None:
    """Commit what is loaded of one topic."""
    newest = loaded[-1]
    ends = ledger_batches.loaded_ends(worker.ledger, newest.cluster_id, newest.topic_id)
    trouble = commit_offsets(worker.settings.kafka_client, newest.topic, ends, newest.batch_id)
    if trouble:
        worker.say(f"group offsets of {newest.topic} were not committed (no harm done): {trouble}")
    failpoint("after-commit")
    for batch in loaded:
        ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.COMMITTED)


def _check_ledger(worker: Worker, topic: Topic, watermark: plan.Watermark) -> None:
    """Raise LedgerBehind when ClickHouse knows of batches that the ledger has no lanes for.

    Planned from such a ledger, a restored or an empty one, everything would be loaded again
    under other names. ClickHouse may be away: what is staged now it is asked about at the load.
    """
    identity = watermark.identity
    try:
        mirrored = mirrored_ends(
            worker.clickhouse, worker.settings.clickhouse_database, identity.topic_id
        )
    except TransientError as error:
        worker.say(f"the ledger is not compared with ClickHouse's mirror of it: {error}")
        return
    planned = ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id)
    ahead = {
        partition: end for partition, end in mirrored.items() if end > planned.get(partition, 0)
    }
    if ahead:
        partition, end = next(iter(sorted(ahead.items())))
        raise LedgerBehind(
            f"the ledger has planned partition {partition} of {topic.name} up to "
            f"{planned.get(partition, 0):,}, but ClickHouse holds batches up to {end:,}: this is "
            "an older or another ledger, and from it those records would be loaded twice. Point "
            "TIDEMARK_LEDGER_URL to the right one, or use another TIDEMARK_CLICKHOUSE_DATABASE"
        )


def _open_lanes(worker: Worker, lease: Lease, topic: Topic, watermark: plan.Watermark) -> None:
    """Take a topic that the ledger sees for the first time from where it begins now."""
    identity = watermark.identity
    if ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id):
        return
    lows = topic.lows(watermark.highs)
    ledger_batches.open_lanes(
        worker.ledger, lease, topic.name, identity.cluster_id, identity.topic_id, lows
    )
    gone = {partition: low for partition, low in lows.items() if low}
    if gone:
        worker.say(
            f"topic {topic.name} is taken up from where it begins now; what was before is "
            "no longer in Kafka: "
            + ", ".join(f"{partition}:[0,{low})" for partition, low in sorted(gone.items()))
        )


def _plan_one(
    worker: Worker, lease: Lease, topic: Topic, watermark: plan.Watermark
) -> Batch | None:
    identity = watermark.identity
    clock = StageClock()
    with clock.stage("plan"):
        cut = plan.cut_next(
            topic,
            watermark,
            ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id),
            _most_offsets(worker, topic.name),
        )
        if cut is None:
            return None
        batch = plan.make_batch(
            cut,
            identity,
            topic=topic.name,
            run_id=worker.run_id,
            code_version=TRANSFORM_VERSION,
            planned_at=now_us(),
        )
        failpoint("before-plan")
        ledger_batches.record_plan(worker.ledger, lease, batch)
    ledger_batches.add_timings(worker.ledger, batch.batch_id, clock.timings())
    worker.say(
        f"batch {batch.batch_id}: planned {batch.offsets:,} offsets of {batch.topic}, "
        f"{batch.arrival_date}, " + " ".join(map(str, batch.ranges))
    )
    failpoint("after-plan")
    return batch


def _most_offsets(worker: Worker, topic: str) -> int:
    """How many offsets a batch may span, by records and by bytes."""
    settings = worker.settings
    average = ledger_batches.average_record_bytes(worker.ledger, topic)
    by_bytes = settings.batch_max_bytes / (average or _ASSUMED_RECORD_BYTES)
    return max(1, min(settings.batch_max_records, int(by_bytes)))


def _stage_one(worker: Worker, lease: Lease, batch: Batch) -> Batch:
    """Stage a batch that is planned, or one that is held once more."""
    ledger, settings = worker.ledger, worker.settings
    clock = StageClock()
    with attempt(ledger, batch.batch_id, "stage", worker.run_id) as number:
        try:
            staged, key_file = _staged(worker, lease, batch, number, clock)
        except (Gap, TopicReplaced) as error:
            if batch.state is State.PLANNED:
                ledger_batches.set_state(ledger, lease, batch.batch_id, State.GAP, str(error))
            raise
        failpoint("after-stage")
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
        )
        if batch.staged is not None:
            mend_index(ledger, worker.lake, batch, staged, worker.say)
        delete_earlier_attempts(batch, number, worker.lake)
    failpoint("after-register")
    ledger_batches.add_timings(ledger, batch.batch_id, clock.timings())
    balance = staged.balance
    worker.say(
        f"batch {batch.batch_id}: staged {balance.ok:,} ok, {balance.rejected:,} rejected, "
        f"{balance.duplicate:,} duplicate, {balance.tombstone:,} tombstone, "
        f"{balance.absent:,} absent; "
        + ", ".join(f"{file.path} ({file.bytes:,} bytes)" for file in staged.files)
    )
    return ledger_batches.read_batch(ledger, batch.batch_id)


def _staged(
    worker: Worker, lease: Lease, batch: Batch, number: int, clock: StageClock
) -> tuple[Staged, KeyFile | None]:
    settings = worker.settings
    check_readable(worker.topic_of(batch), batch.topic_id, batch.readable)
    seen = open_index(worker.ledger, worker.lake, batch, settings.duplicate_window_days, worker.say)
    average = ledger_batches.average_record_bytes(worker.ledger, batch.topic)
    chunks = read_ranges(
        settings.kafka_client, batch.topic, batch.readable, average or _ASSUMED_RECORD_BYTES
    )
    try:
        return stage(
            batch,
            chunks,
            worker.lake,
            seen,
            clock,
            attempt=number,
            may_publish=lambda: assert_held(worker.ledger, lease),
        )
    finally:
        # Else each batch of a backlog starts on top of what the one before it left cached.
        pa.default_memory_pool().release_unused()


def _load_one(worker: Worker, lease: Lease, batch: Batch) -> None:
    ledger, settings = worker.ledger, worker.settings
    clock = StageClock()
    with attempt(ledger, batch.batch_id, "load", worker.run_id) as number:
        if number > 1:
            worker.say(f"batch {batch.batch_id}: attempt {number} at loading")
        ledger_batches.set_state(ledger, lease, batch.batch_id, State.LOADING)
        failpoint("before-insert")
        try:
            inserted = load(
                worker.clickhouse,
                settings.clickhouse_database,
                worker.lake,
                batch,
                Kind.EVENTS,
                worker.run_id,
                clock,
                may_insert=lambda: assert_held(ledger, lease),
            )
        except StagedFileDamaged as error:
            _stage_again_if_possible(worker, lease, batch, error)
            raise
        except ProofFailed as error:
            ledger_batches.set_state(ledger, lease, batch.batch_id, State.SUSPECT, str(error))
            raise
        except TransientError:
            raise
        except BatchError as error:
            if number >= _REFUSALS:
                ledger_batches.set_state(ledger, lease, batch.batch_id, State.SUSPECT, str(error))
            raise
        failpoint("after-insert")
        ledger_batches.set_state(ledger, lease, batch.batch_id, State.LOADED)
    failpoint("after-loaded")
    ledger_batches.add_timings(ledger, batch.batch_id, clock.timings())
    assert batch.staged is not None
    rows = batch.staged.balance.ok
    worker.say(
        f"batch {batch.batch_id}: {rows:,} rows "
        + ("loaded and proved" if inserted or not rows else "were in ClickHouse already, proved")
    )


def _stage_again_if_possible(
    worker: Worker, lease: Lease, batch: Batch, damage: StagedFileDamaged
) -> None:
    """The proof came first, so nothing is in ClickHouse; the records may still be in Kafka."""
    try:
        check_readable(worker.topic_of(batch), batch.topic_id, batch.readable)
    except (Gap, TopicReplaced) as gone:
        # The file may come back, with the mount or the bucket: its registration is kept.
        note = f"{damage}. Nor can it be staged again: {gone}"
        ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.SUSPECT, note)
        return
    worker.say(f"batch {batch.batch_id}: {damage}; it is staged again by the next run")
    ledger_batches.stage_again(worker.ledger, lease, batch.batch_id, str(damage))


def _load_dead_letters_of(worker: Worker, lease: Lease, batch: Batch) -> None:
    assert batch.staged is not None
    rejected = batch.staged.balance.rejected
    if not rejected:
        return
    with attempt(worker.ledger, batch.batch_id, "dead_letters", worker.run_id):
        try:
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
        except (ProofFailed, StagedFileDamaged) as error:
            note = f"dead letters: {error}"
            ledger_batches.set_state(worker.ledger, lease, batch.batch_id, State.SUSPECT, note)
            raise
    worker.say(f"batch {batch.batch_id}: {rejected:,} dead letters loaded and proved")


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
    if accept_gap and batch.state is not State.GAP:
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
            return _stage_one(worker, lease, batch)
        except (Gap, TopicReplaced) as error:
            raise BatchError(
                f"batch {batch_id} cannot be staged again: {error}. It stays held as it was "
                f"staged; `tidemark release {batch_id}` publishes that"
            ) from error


def _check_held(worker: Worker, batch_id: str, to: str) -> Batch:
    batch = ledger_batches.read_batch(worker.ledger, batch_id)
    if batch.state is not State.HELD:
        raise BatchError(f"batch {batch_id} is {batch.state}: only a held batch can {to}")
    return batch


def _read_again(worker: Worker, batches: list[Batch]) -> list[Batch]:
    return [ledger_batches.read_batch(worker.ledger, batch.batch_id) for batch in batches]
