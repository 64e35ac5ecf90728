"""The spool: a queue on disk that takes records while Kafka does not, and sends them in order.

    queued ─ writer task, group by group ─▶ on disk ─ drain task, oldest first ─▶ Kafka ─▶ marked

The states of a request that goes through it, and what a crash leaves of it:

    1 queued in memory              nothing; it was not answered yet
    2 written, not synced           nothing, a torn tail that is cut, or all of it (then as 3);
                                    it was not answered yet, so the client sends it again
    3 synced, answered 200          all of it: whoever adopts the folder drains it
    4 produced, not acknowledged    all of it, and perhaps in Kafka too: drained again, same uuids
    5 acknowledged, not marked      the same
    6 marked, segment still there   nothing to do: the position is behind it
    7 segment removed               nothing to do

While anything is in the spool it is `active`, and whatever comes goes behind it, so that the order
per key is kept. It ends like this: when all that is on disk is acknowledged, the writer pauses;
once its last group is drained as well, what has queued up meanwhile (a sync's time) goes directly
to Kafka, and so does all that follows.

Invariants: 200 only after the sync; the position moves only after Kafka's acknowledgement; what is
held in memory and on disk is bounded, and beyond it the answer is 503. Everything here runs on the
event loop except what SpoolFolder does, which runs on two threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import KafkaError

from capture_api.events.records import Record
from capture_api.kafka.delivery import Delivery
from capture_api.kafka.errors import FOR_GOOD, OF_THE_TOPIC
from capture_api.kafka.health import KafkaHealth
from capture_api.kafka.spool_folder import (
    Chunk,
    Position,
    SpoolFolder,
    claim_orphans,
    claim_own,
)

SEGMENT_BYTES = 16 << 20
GROUP_BYTES = 4 << 20
"""What is written and synced at once."""
FULL = 0.9
"""The part of its size at which it is called full; the rest is for what is on its way by then."""
QUEUED_BYTES = 32 << 20
"""What may wait in memory for the disk."""
ADOPT_SECONDS = 5.0
"""How often folders whose owner died are looked for."""
PAUSE_SECONDS = 0.2
"""Between tries while Kafka refuses."""
TOPIC_SECONDS = 60.0
"""How long records for a topic that is missing or forbidden hold up what is behind them."""
READ_TRIES = 10
"""Tries at reading a segment, DISK_PAUSE_SECONDS apart, before it is passed over."""
DISK_PAUSE_SECONDS = 1.0
"""Between tries while the disk refuses; requests between them are answered 503 at once."""

T = TypeVar("T")
Send = Callable[[list[Record]], Awaitable[list[KafkaError | None]]]

log = logging.getLogger("tidemark.capture.spool")


class Spool:
    """The spool of one process; between `start` and `close`, on one event loop.

    `send` produces records whatever the breaker says; `resume` takes over what is still queued when
    the spool is empty, and leaves what Kafka's queue has no room for; `tell` hears of topics that
    are missing.
    """

    def __init__(
        self,
        root: str,
        max_bytes: int,
        health: KafkaHealth,
        send: Send,
        resume: Callable[[deque[Delivery]], None],
        tell: Callable[[KafkaError], object],
    ) -> None:
        self._root = Path(root)
        self._max_bytes = max_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max(max_bytes // 8, 1 << 16))
        self._health = health
        self._send = send
        self._resume = resume
        self._tell = tell
        self._queued: deque[Delivery] = deque()
        self._queued_bytes = 0
        self._writing: list[Delivery] = []
        self._paused = False  # the writer, lest the end is never reached
        self._wanted = asyncio.Event()  # something is queued, or the writer may go on
        self._changed = asyncio.Event()  # something is stored, or the writer came to rest
        self._ahead: asyncio.Future[Chunk | None] | None = None  # what the drain reads next
        self._marking: asyncio.Future[None] | None = None
        self._disk_error = ""
        self._try_disk_at = 0.0  # monotonic seconds
        self._oldest = 0.0  # seconds since 1970
        self.active = False
        """Whether records go through the spool."""
        self.trouble = ""
        """Why the drain does not get on, while it does not."""
        self.records_stored = 0
        """Records acknowledged from the spool, since the start."""
        self.records_drained = 0
        """Records that Kafka acknowledged from the spool, since the start."""
        self.records_refused = 0
        """Records that Kafka would never take, set aside since the start."""

    @property
    def records(self) -> int:
        """Records on disk that Kafka has not acknowledged."""
        return sum([folder.records for folder in self._folders])

    @property
    def bytes(self) -> int:
        """What the segments take on disk, and what waits for it."""
        return sum([folder.bytes for folder in self._folders]) + self._queued_bytes

    @property
    def _own_bytes(self) -> int:
        """What counts against the size: what was adopted is only on its way out."""
        return self._own.bytes + self._queued_bytes

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest record that Kafka has not acknowledged; 0 when there is none."""
        return max(0.0, time.time() - self._oldest) if self._oldest and self.records else 0.0

    def start(self) -> None:
        """Claim a folder and begin to drain what is found. Raises OSError. Blocks a moment."""
        self._own = claim_own(self._root, self._segment_bytes)
        self._folders: list[SpoolFolder] = [self._own]  # in the order of draining; own is last
        self._writer = ThreadPoolExecutor(1, "spool-write")
        self._reader = ThreadPoolExecutor(1, "spool-read")
        self._adopt(claim_orphans(self._root, self._segment_bytes))
        if self.records:
            self._begin(f"{self.records} records of an earlier process are there")
        self._loop = asyncio.get_running_loop()
        self._next_adoption = self._loop.time() + ADOPT_SECONDS
        self._tasks = [
            asyncio.create_task(self._write_on(), name="spool-write"),
            asyncio.create_task(self._drain_on(), name="spool-drain"),
        ]
        for task in self._tasks:
            task.add_done_callback(_log_death)

    def dead(self) -> str | None:
        """The name of a task that ended, or None."""
        return next((task.get_name() for task in self._tasks if task.done()), None)

    def no_room(self) -> str | None:
        """Why no records can be taken now, or None."""
        if self._disk_error and time.monotonic() < self._try_disk_at:
            return f"the spool cannot be written: {self._disk_error}"
        if self._own_bytes >= self._max_bytes * FULL:
            return f"the spool is full: {self._own_bytes} of {self._max_bytes} bytes"
        if self._queued_bytes >= QUEUED_BYTES:
            return f"{self._queued_bytes} bytes wait for the spool's disk"
        return None

    def take(self, delivery: Delivery, reason: str) -> None:
        """Put the delivery behind everything that is in the spool. It is told when it is on disk.

        `reason` is why the spool begins to be used, if it does.
        """
        if not self.active:
            self._begin(reason)
        size = delivery.hand_over()
        if not delivery.to_spool:
            delivery.stored()  # nothing of it can be helped here
            return
        if self._own_bytes + size > self._max_bytes:
            delivery.not_stored(_full())
            return
        self._queued.append(delivery)
        self._queued_bytes += size
        self._wanted.set()

    def give_up_before(self, started: float) -> None:
        """Give up on what waits for the disk since before then."""
        for waiting in (self._writing, self._queued):
            for delivery in waiting:
                if delivery.started < started:
                    delivery.not_stored(KafkaError(KafkaError._TIMED_OUT))

    async def close(self) -> None:
        """Write what is queued, and give the folders up."""
        writing, draining = self._tasks
        draining.cancel()
        self._go_on_writing()
        while (self._writing or self._queued) and not writing.done():
            self._changed.clear()
            change = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait([change, writing], return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        writing.cancel()
        await self._marked()
        for executor in (self._reader, self._writer):
            await asyncio.to_thread(executor.shutdown)
        for folder in self._folders:
            folder.close()

    # --- writing

    def _begin(self, reason: str) -> None:
        self.active = True
        log.warning("records go through the spool in %s: %s", self._own.path, reason)

    async def _write_on(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._queued and not self._paused:
                await self._write(self._next_group())
            self._changed.set()

    def _next_group(self) -> list[Delivery]:
        group, size = self._writing, 0
        while self._queued and size < GROUP_BYTES:
            delivery = self._queued.popleft()
            size += delivery.size
            if not delivery.future.done():  # else Kafka had it after all, or it was given up
                group.append(delivery)
            else:
                self._queued_bytes -= delivery.size
        return group

    async def _write(self, group: list[Delivery]) -> None:
        requests = [delivery.to_spool for delivery in group]
        now = time.time()
        try:
            if requests:
                end = await self._in(self._writer, self._own.append, requests, now)
        except OSError as error:
            if not self._disk_error:
                log.error("the spool cannot be written, requests are answered 503: %s", error)
            self._disk_error = str(error)
            self._try_disk_at = time.monotonic() + DISK_PAUSE_SECONDS
            for delivery in group:
                delivery.not_stored(_full())
        else:
            if requests:
                self._disk_error = ""
                count = sum(map(len, requests))
                if not self.records:
                    self._oldest = now
                self._own.sizes[end.segment] = end.offset
                self._own.records += count
                self.records_stored += count
                for delivery in group:
                    delivery.stored()
        self._queued_bytes -= sum([delivery.size for delivery in group])
        group.clear()
        self._changed.set()

    def _go_on_writing(self) -> None:
        self._paused = False
        self._wanted.set()

    # --- draining

    async def _drain_on(self) -> None:
        while True:
            for folder in list(self._folders):
                await self._drain(folder)
            if self._folders[0] is not self._own:
                continue  # adopted meanwhile: those go first
            if self._own.records:
                continue
            if not self.active:
                await self._rest()
            elif self._health.is_open:
                self._go_on_writing()
                await asyncio.sleep(PAUSE_SECONDS)
            elif self._writing or (self._queued and not self._paused):
                # Caught up with the writer: let it finish its group and then wait for the end.
                self._paused = True
                self._changed.clear()
                if self._writing:
                    await self._changed.wait()
            else:
                await self._end()

    async def _drain(self, folder: SpoolFolder) -> None:
        """Send all that is in the folder now."""
        failures = 0
        while True:
            try:
                if not await self._drain_chunk(folder):
                    break
                failures = 0
            except FileNotFoundError as error:
                self._ahead = None
                log.error("a segment of the spool was taken away, and its records: %s", error)
                there = await self._in(self._reader, folder.present)
                for number in folder.sizes.keys() - there:
                    del folder.sizes[number]
            except OSError as error:
                self._ahead = None  # it lies behind what was not delivered
                if self.trouble != str(error):
                    log.error("the spool in %s cannot be drained: %s", folder.path, error)
                self.trouble = str(error)
                failures += 1
                if failures >= READ_TRIES:
                    failures = 0
                    self._pass_over(folder)
                self._go_on_writing()
                await asyncio.sleep(DISK_PAUSE_SECONDS)
        if folder is not self._own:
            self._folders.remove(folder)
            try:
                await self._in(self._reader, folder.remove)
            except OSError as error:
                log.error("the drained folder %s cannot be removed: %s", folder.path, error)
            log.info("the spool of an earlier process is drained: %s", folder.path)

    def _pass_over(self, folder: SpoolFolder) -> None:
        """Leave the segment that cannot be read; what is behind it must not wait for ever."""
        number = min((n for n in folder.sizes if n >= folder.position.segment), default=None)
        if number is not None:
            log.error("segment %d of %s is passed over, and kept", number, folder.path)
            folder.give_up_segment(number)
            folder.position = Position(number + 1, 0)

    async def _drain_chunk(self, folder: SpoolFolder) -> bool:
        """Send the next records; False when there are none.

        While Kafka takes them, the next are read and the position behind the last is marked.
        """
        ahead, self._ahead = self._ahead, None
        chunk = await ahead if ahead is not None else None
        if chunk is None:
            sizes = dict(folder.sizes)
            chunk = await self._in(self._reader, folder.read, folder.position, sizes)
        if chunk is None:
            await self._marked()
            if folder.sizes == sizes:
                folder.records = 0  # what was counted may have been damaged since
            return False
        self._oldest = chunk.written_at or self._oldest
        self._ahead = asyncio.ensure_future(
            self._in(self._reader, folder.read, chunk.end, dict(folder.sizes))
        )
        await self._deliver(folder, chunk)
        folder.position = chunk.end
        folder.records = max(0, folder.records - len(chunk.records))
        self.records_drained += len(chunk.records)
        await self._marked()
        self._marking = asyncio.ensure_future(self._mark(folder, chunk.end))
        return True

    async def _marked(self) -> None:
        """Wait until the position is where it was last told to be."""
        marking, self._marking = self._marking, None
        if marking is not None:
            await marking

    async def _deliver(self, folder: SpoolFolder, chunk: Chunk) -> None:
        """Send the records until Kafka has each of them, or will never take it."""
        rest = chunk.records
        topic_fails_since: float | None = None
        while rest:
            await self._wait_for_kafka()
            errors = await self._send(rest)
            alone, again = len(rest) == 1, []
            topic_fails = False
            for record, error in zip(rest, errors, strict=True):
                if error is None:
                    continue
                self.trouble = error.str()
                if error.code() in FOR_GOOD:
                    if alone:
                        await self._set_aside(folder, record, error)
                    else:  # its batch, perhaps: by itself it will tell
                        one = Chunk([record], chunk.written_at, chunk.end)
                        await self._deliver(folder, one)
                    continue
                if error.code() in OF_THE_TOPIC:
                    topic_fails = True
                    self._tell(error)
                    now = self._loop.time()
                    topic_fails_since = topic_fails_since or now
                    if now - topic_fails_since > TOPIC_SECONDS:
                        await self._set_aside(folder, record, error)
                        continue
                again.append(record)
            if not topic_fails:
                topic_fails_since = None
            rest = again
            if rest:
                self._go_on_writing()
                await asyncio.sleep(PAUSE_SECONDS)
        self.trouble = ""

    async def _wait_for_kafka(self) -> None:
        while not self._health.take_probe():
            self._go_on_writing()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _set_aside(self, folder: SpoolFolder, record: Record, error: KafkaError) -> None:
        """Keep the record beside the segments. While the disk refuses that, nothing else goes on:
        what was delivered before it is not to be sent again.
        """
        topic, value, _ = record
        log.error(
            "Kafka does not take a record of %d bytes for %r (%s): it is set aside in %s",
            len(value),
            topic,
            error.name(),
            folder.path / "refused.segment",
        )
        while True:
            try:
                await self._in(self._reader, folder.set_aside, [record], time.time())
            except OSError as disk_error:
                self.trouble = f"a record cannot be set aside: {disk_error}"
                self._go_on_writing()
                await asyncio.sleep(DISK_PAUSE_SECONDS)
            else:
                break
        self.records_refused += 1

    async def _mark(self, folder: SpoolFolder, end: Position) -> None:
        done = [number for number in folder.sizes if number < end.segment]
        try:
            await self._in(self._reader, folder.mark, end, done)
        except OSError as error:  # the worst that follows is sending again after a crash
            log.error("the position in %s cannot be written: %s", folder.path, error)
        else:
            for number in done:
                folder.sizes.pop(number, None)

    async def _end(self) -> None:
        """All is drained and the writer rests: what is queued goes directly, and all that follows.

        Up to `_resume` nothing here waits, so no request comes in between.
        """
        self._resume(self._queued)
        self._queued_bytes = sum([delivery.size for delivery in self._queued])
        self._go_on_writing()
        if self._queued:
            return
        self.active = False
        log.warning("the spool is drained, records go directly to Kafka again")
        done = list(self._own.sizes)
        if done:
            self._own.position = Position(max(done) + 1, 0)
            self._own.sizes.clear()
            try:
                await self._in(self._writer, self._own.clear, self._own.position, done)
            except OSError as error:
                log.error("segments in %s cannot be removed: %s", self._own.path, error)

    async def _rest(self) -> None:
        """Wait until there is something to drain; adopt what others left from time to time."""
        self._changed.clear()
        try:
            async with asyncio.timeout_at(self._next_adoption):
                await self._changed.wait()
        except TimeoutError:
            try:
                orphans = await self._in(
                    self._reader, claim_orphans, self._root, self._segment_bytes
                )
            except OSError as error:
                log.error("the spool's folder %s cannot be looked at: %s", self._root, error)
            else:
                self._adopt(orphans)
                if self.records and not self.active:
                    self._begin(f"{self.records} records of another process are there")
            self._next_adoption = self._loop.time() + ADOPT_SECONDS

    def _adopt(self, orphans: list[SpoolFolder]) -> None:
        for folder in orphans:
            log.warning("adopted the spool %s: %d records", folder.path, folder.records)
        self._folders[:0] = orphans

    async def _in(self, executor: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(executor, call, *arguments)


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the task %s has ended", task.get_name(), exc_info=error)


def _full() -> KafkaError:
    return KafkaError(KafkaError._QUEUE_FULL, "the spool has no room")
