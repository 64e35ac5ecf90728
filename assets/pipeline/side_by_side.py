"""Side by side: batches of one topic are staged at once, each of other partitions.

    plan ─▶ begun: a stager has it ─▶ made ─▶ compared ─┬─▶ registered, in the order of planning
              ▲   (as many as there are stagers)        │            └─▶ loaded early, as ever
              └── SeenMeanwhile: staged again, first in line ◀┘

The run that holds the lease plans, begins, compares and registers; stagers (stager.py) only make
files. What is begun at once is of partitions that nothing else under way is of: so a plain resend
is in the same batch, or in a later one of the same partition, and only what a client sent into two
partitions is found at the comparison (compare_keys.py). Redrives are staged by the run itself, with
nothing else under way.

What a crash leaves, besides what one stager leaves as well:

    killed                   ledger                    lake            what follows
    a stager                 planned; the attempt is   part of files,  this run does the others, a
                             failed (StagerGone)       or whole ones   later one stages it again
    the run, while some      planned, so many          the same; the   the next one notes these as
    are staged               attempts without an end   stagers end     killed, stages them again
    the run, all is made,    the same                  whole files     the same
    or compared
    the run, a hit is found  planned; the attempt is   whole files     stages it again, against
                             failed (SeenMeanwhile)                    the index of then
    the run, one registered  one staged, the others    whole files     loads the one, stages the
                             planned                                   others again
    nobody: a stopped        as above                  nothing more    it has been killed by its
    stager wakes                                                       run, or ends by itself

Invariant: of what is registered every key was compared with every key registered before it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from assets.pipeline.batch import Batch
from assets.pipeline.circuit import STAGE, Circuit
from assets.pipeline.early_loads import EarlyLoads
from assets.pipeline.errors import (
    BatchError,
    KeyFileUnreadable,
    LogTruncated,
    SeenMeanwhile,
    StagingStopped,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.key_copies import NoCopies
from assets.pipeline.lanes import (
    ASSUMED_RECORD_BYTES,
    check_ledger,
    most_offsets,
    open_lanes,
    plan_next,
    unread,
)
from assets.pipeline.leftovers import take_back
from assets.pipeline.plan import Watermark
from assets.pipeline.registering import Made, make, register, stage_one, tell_registered
from assets.pipeline.room import why_no_room
from assets.pipeline.stager_messages import Job
from assets.pipeline.stager_pool import Stager, StagerPool, StagerUnborn
from assets.pipeline.topic import Topic
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger.attempts import attempt
from orchestration.ledger.batches import average_record_bytes
from orchestration.ledger.leases import Lease

_PARTS_OF_A_BATCH = 4
"""Less than such a part of a full batch is not worth a batch of its own."""


def is_worth_it(
    worker: Worker, pool: StagerPool, topic: Topic, watermark: Watermark, begun: Sequence[Batch]
) -> bool:
    """Whether more waits than one batch holds, in several partitions: else one has it all to do.

    What only the run itself stages is nothing for stagers.
    """
    if pool.count == 1:
        return False
    waits: Counter[int] = Counter()
    with suppress(LogTruncated):  # which is told where batches are planned
        waits.update(unread(worker, topic, watermark))
    for batch in (batch for batch in begun if not _is_alone(batch)):
        waits.update({range_.partition: len(range_) for range_ in batch.ranges})
    most = most_offsets(worker, topic.name)
    beside = waits.total() - max(waits.values(), default=0)
    return waits.total() > most and beside >= max(1, most // _PARTS_OF_A_BATCH)


def choose_lanes(waits: Mapping[int, int], busy: Collection[int], idle: int, most: int) -> set[int]:
    """The partitions for one of so many idle stagers, of those that have unread offsets.

    What is not busy is shared out evenly by what waits in it, among as many stagers as have
    something worth a batch then; `most` is a full one's offsets. None, when what is not busy is not
    worth one: the others will be through, and it is in a fuller batch then.
    """
    free = {partition: count for partition, count in waits.items() if partition not in busy}
    worth = sum(free.values()) // max(1, most // _PARTS_OF_A_BATCH)
    if busy and not worth:
        return set()
    shares = max(1, min(idle, len(free), worth))
    loads = [0] * shares
    chosen: list[set[int]] = [set() for _ in loads]
    for partition, count in sorted(free.items(), key=lambda item: (-item[1], item[0])):
        least = loads.index(min(loads))
        loads[least] += count
        chosen[least].add(partition)
    return chosen[0]


@dataclass
class _UnderWay:
    """An attempt at staging: the stager that is at its job, if one is; or why it was not begun."""

    batch: Batch
    number: int
    attempt: ExitStack
    stager: Stager | None
    job: Job | None
    not_begun: Exception | None = None


class _Source:
    """What is to be staged next: batches that were planned before, then new ones."""

    def __init__(
        self,
        worker: Worker,
        lease: Lease,
        circuit: Circuit,
        topic: Topic,
        watermark: Watermark,
        begun: Sequence[Batch],
        until: float,
        has_room: Callable[[], bool],
    ) -> None:
        self._worker = worker
        self._lease = lease
        self._circuit = circuit
        self._topic = topic
        self._watermark = watermark
        self._begun = deque(begun)
        self._until = until
        self._has_room = has_room
        self._is_checked = False
        self._is_over = False
        self._has_planned = False
        self.ended_by: BatchError | None = None
        """Why there is no more, if that is not just how it is."""

    def next(self, under_way: Sequence[_UnderWay], idle: int) -> Batch | None:
        """The next batch, disjoint from what is under way; None while there is none."""
        if self._is_over:
            return None
        try:
            if not self._may_more(under_way):
                return None
            if self._begun:
                return self._next_begun(under_way)
            return self._next_planned(under_way, idle)
        except BatchError as error:
            self._is_over, self.ended_by = True, error
            return None

    def _may_more(self, under_way: Sequence[_UnderWay]) -> bool:
        if under_way and self._is_full_with(under_way):
            return False
        if not under_way and not self._has_room():
            self._is_over = True
            return False
        self._circuit.check()
        return True

    def _is_full_with(self, under_way: Sequence[_UnderWay]) -> bool:
        """Whether there is no room beside these, taken for as large as their records are."""
        worker = self._worker
        average = average_record_bytes(worker.ledger, self._topic.name) or ASSUMED_RECORD_BYTES
        coming = int(sum(one.batch.offsets for one in under_way) * average)
        return why_no_room(worker.settings, worker.ledger, worker.lake, coming) is not None

    def _next_begun(self, under_way: Sequence[_UnderWay]) -> Batch | None:
        batch = self._begun[0]
        if under_way and (_is_alone(batch) or _lanes(batch) & _busy(under_way)):
            return None
        self._begun.popleft()
        self._worker.say(f"batch {batch.batch_id}: taken up again after its plan")
        return batch

    def _next_planned(self, under_way: Sequence[_UnderWay], idle: int) -> Batch | None:
        worker, lease, topic, watermark = self._worker, self._lease, self._topic, self._watermark
        if not self._is_checked:
            check_ledger(worker, lease, topic, watermark)
            open_lanes(worker, lease, topic, watermark)
            self._is_checked = True
        if self._has_planned and time.monotonic() >= self._until:
            self._is_over = True
            return None
        waits = unread(worker, topic, watermark)
        topic_id = watermark.identity.topic_id
        busy = {partition for of, partition in _busy(under_way) if of == topic_id}
        lanes = choose_lanes(waits, busy, idle, most_offsets(worker, topic.name))
        if not lanes:
            self._is_over = not waits
            return None
        self._has_planned = True
        return plan_next(worker, lease, topic, watermark, lanes)


class SideBySide:
    """A topic's batches on their way through the stagers; see above."""

    def __init__(
        self,
        worker: Worker,
        lease: Lease,
        pool: StagerPool,
        aside: PutAside,
        early: EarlyLoads,
        keep_index: Callable[[Batch], None],
    ) -> None:
        self._worker = worker
        self._lease = lease
        self._pool = pool
        self._aside = aside
        self._early = early
        self._keep_index = keep_index
        self._circuit = worker.circuit(lease, STAGE)
        self._under_way: deque[_UnderWay] = deque()

    def stage(
        self,
        topic: Topic,
        watermark: Watermark,
        begun: Sequence[Batch],
        until: float,
        has_room: Callable[[], bool],
        staged: list[Batch],
    ) -> None:
        """Stage a topic up to its watermark; what was staged goes to the end of `staged`."""
        source = _Source(
            self._worker,
            self._lease,
            self._circuit,
            topic,
            watermark,
            begun,
            until,
            has_room,
        )
        self._worker.say(f"up to {self._pool.count} stagers work side by side on {topic.name}")
        try:
            while True:
                self._fill(source, staged)
                if not self._under_way:
                    break
                with self._aside.errors():
                    self._finish_first(staged)
        except BaseException as error:
            self._abandon(error)
            raise
        if source.ended_by is not None:
            raise source.ended_by

    def _fill(self, source: _Source, staged: list[Batch]) -> None:
        """Begin as many batches as there are stagers, and let what is staged be loaded."""
        while (idle := self._pool.count - len(self._under_way)) > 0:
            batch = source.next(self._under_way, idle)
            if batch is None:
                break
            self._early.take(staged)
            if _is_alone(batch):
                with self._aside.errors():
                    staged.append(stage_one(self._worker, self._lease, self._circuit, batch))
            else:
                self._under_way.append(self._begun(batch))
                failpoint("begun")
        if self._under_way:
            self._early.take(staged)

    def _begun(self, batch: Batch) -> _UnderWay:
        worker, stager = self._worker, self._pool.take()
        host = "" if stager is None else stager.name
        with ExitStack() as stack:
            number = stack.enter_context(
                attempt(worker.ledger, batch.batch_id, STAGE, worker.run_id, host)
            )
            job, not_begun = None, None
            if stager is not None:
                try:
                    job = self._job(batch, number)
                except NoCopies as error:
                    self._pool.give_up(str(error))
                except SQLAlchemyError:
                    raise
                except Exception as error:  # this batch's trouble, told when its turn comes
                    not_begun = error
            if stager is not None and job is not None:
                stager.begin(job)
            else:
                stager = None
            return _UnderWay(batch, number, stack.pop_all(), stager, job, not_begun)

    def _job(self, batch: Batch, number: int) -> Job:
        """What a stager is told; the index is where it can map it."""
        worker = self._worker
        window = worker.window_for(batch)
        needed = [window, *(one.job.window for one in self._under_way if one.job is not None)]
        worker.key_copies.keep_only({path for each in needed for path in each.paths})
        copies = worker.key_copies.folder_with(worker.lake, window.paths)
        return Job(batch, number, self._lease, window, copies)

    def _finish_first(self, staged: list[Batch]) -> None:
        """Register what was begun first, once it is made; or stage it again."""
        one = self._under_way.popleft()
        try:
            with one.attempt:
                made = register(
                    self._worker,
                    self._lease,
                    self._circuit,
                    one.batch,
                    one.number,
                    lambda: self._made(one),
                )
        except SeenMeanwhile as seen:
            self._worker.say(str(seen))
            failpoint("stage-again")
            self._under_way.appendleft(self._begun(one.batch))
            return
        staged.append(tell_registered(self._worker, one.batch, one.number, made))
        self._keep_index(one.batch)

    def _made(self, one: _UnderWay) -> Made:
        """What a stager has made, or this process does where no stager can."""
        try:
            if one.not_begun is not None:
                raise one.not_begun
            if one.stager is not None:
                return self._result(one.stager)
        except StagerUnborn as unborn:
            self._pool.give_up(str(unborn))
            # It may have written other kinds of files than this process will.
            take_back(self._worker.lake, one.batch, one.number)
        except KeyFileUnreadable as error:
            self._worker.say(f"{error}: batch {one.batch.batch_id} is staged by the run itself")
        return make(self._worker, self._lease, one.batch, one.number)

    def _result(self, stager: Stager) -> Made:
        try:
            return stager.result()
        except Exception as error:
            for note in getattr(error, "__notes__", ()):  # where in the stager it was raised
                self._worker.say(f"in the stager {stager.name}: {note}")
            raise
        finally:
            self._pool.note(stager)

    def _abandon(self, error: BaseException) -> None:
        """Nothing of what is under way counts: its stagers end, its attempts have failed."""
        while self._under_way:
            one = self._under_way.popleft()
            if one.stager is not None:
                self._pool.kill(one.stager)
            told = StagingStopped(f"staging stopped meanwhile: {type(error).__name__}: {error}")
            with suppress(StagingStopped, SQLAlchemyError), one.attempt:
                raise told


def _is_alone(batch: Batch) -> bool:
    """Whether only the run itself stages it, and nothing beside it."""
    return batch.is_redrive or batch.is_import


def _lanes(batch: Batch) -> set[tuple[str, int]]:
    return {(batch.topic_id, range_.partition) for range_ in batch.ranges}


def _busy(under_way: Sequence[_UnderWay]) -> set[tuple[str, int]]:
    return {lane for one in under_way for lane in _lanes(one.batch)}
