"""Rate limits shared between replicas and workers through Redis or Valkey.

    every SYNC_SECONDS   INCRBY what this worker took of each key  →  the total of all workers
                         total − what it was − what we added = what the others took: drained here

A request never waits for Redis: it is judged by this worker's own buckets, which are a fraction of
a second behind the others. Failing open: while Redis is away each worker has its buckets to
itself, and what it took meanwhile is forgotten.

Invariant: what was taken is told once at most. A command without an answer may have been carried
out or not, so it is not sent again, and what Redis says next is a new beginning to count from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

SYNC_SECONDS = 0.2
ANSWER_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
KEPT_SECONDS = 120
"""How long Redis keeps the total of a key that nobody takes from."""
MAX_TOLD_AT_ONCE = 500
"""Keys of one pipeline: putting it together must not hold up requests."""
MAX_TOTALS = 100_000
"""Keys whose totals are remembered; beyond, all are learnt anew."""

log = logging.getLogger("tidemark.capture.limits")


class Shareable(Protocol):
    """Buckets of one kind, or the lines of those who wait for them."""

    @property
    def name(self) -> str:
        """What tells this kind from others."""

    taken: dict[str, float] | None
    """By key, what was taken here since somebody last looked."""

    def drain(self, key: str, amount: float) -> None:
        """Learn that others have taken so much."""


class SharedBuckets:
    """Keeps buckets in step with those of other workers; between `start` and `close`."""

    def __init__(self, url: str, buckets: Sequence[Shareable]) -> None:
        self._redis = Redis.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the client's own would tell everything again
        )
        self._buckets = buckets
        self._totals: dict[str, float] = {}
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.away = False

    def start(self) -> None:
        """Start keeping in step. Called on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Tell the last takings, and stop."""
        self._stopping.set()
        if self._task is not None:
            await self._task  # not cancelled: what it is telling would be lost or told twice
        if not self.away:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self.sync()
        await self._redis.aclose()

    async def sync(self) -> None:
        """Tell what was taken since the last time, and learn what others took."""
        told: list[tuple[Shareable, str, float]] = []
        for buckets in self._buckets:
            if buckets.taken:
                told += [(buckets, key, amount) for key, amount in buckets.taken.items()]
                buckets.taken = {}
        if not told and self.away:
            await self._redis.ping()
        try:
            for start in range(0, len(told), MAX_TOLD_AT_ONCE):
                await self._tell(told[start : start + MAX_TOLD_AT_ONCE])
        except BaseException:
            self._totals.clear()
            raise
        if len(self._totals) > MAX_TOTALS:
            self._totals.clear()

    async def _tell(self, told: list[tuple[Shareable, str, float]]) -> None:
        names = [_name(buckets.name, key) for buckets, key, _ in told]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name, (_, _, amount) in zip(names, told, strict=True):
                pipeline.incrbyfloat(name, amount)
                pipeline.expire(name, KEPT_SECONDS)
            answers = await pipeline.execute()
        for name, (buckets, key, amount), total in zip(names, told, answers[::2], strict=True):
            before = self._totals.get(name, total - amount)
            self._totals[name] = total
            buckets.drain(key, max(0.0, total - amount - before))

    async def _run(self) -> None:
        pause = SYNC_SECONDS
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            try:
                await self.sync()
            except (RedisError, OSError, TimeoutError) as error:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                if not self.away:
                    log.warning(
                        "rate limits are not shared with other workers for now: %s "
                        "(TIDEMARK_CAPTURE_REDIS_URL)",
                        error,
                    )
                self.away = True
            else:
                pause = SYNC_SECONDS
                if self.away:
                    log.info("rate limits are shared with other workers again")
                self.away = False


def _name(kind: str, key: str) -> str:
    """The key in Redis; hashed, since it may be somebody's address."""
    return f"tidemark:taken:{kind}:{blake2b(key.encode(), digest_size=12).hexdigest()}"
