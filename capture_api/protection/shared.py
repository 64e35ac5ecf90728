"""Rate limits shared between replicas and workers through Redis or Valkey.

    every SYNC_SECONDS   INCRBY what this worker took of each key  →  the total of all workers
                         total − what it was − what we added = what the others took: drained here

A request never waits for Redis: it is judged by this worker's own buckets, which are a fraction of
a second behind the others. Failing open: while Redis is away each worker has its buckets to
itself, and what it took meanwhile is told when Redis is back, or forgotten after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from hashlib import blake2b

from redis.asyncio import Redis
from redis.exceptions import RedisError

from capture_api.protection.buckets import Buckets

SYNC_SECONDS = 0.2
ANSWER_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0
KEPT_SECONDS = 120
"""How long Redis keeps the total of a key that nobody takes from."""
MAX_UNTOLD = 50_000
"""Keys whose takings are kept for a Redis that is away."""

log = logging.getLogger("tidemark.capture.limits")


class SharedBuckets:
    """Keeps buckets in step with those of other workers; between `start` and `close`."""

    def __init__(self, url: str, buckets: Sequence[Buckets]) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
        )
        self._buckets = buckets
        self._totals: dict[str, tuple[float, float]] = {}  # and when they were learnt
        self._task: asyncio.Task[None] | None = None
        self.away = False

    def start(self) -> None:
        """Start keeping in step. Called on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Tell the last takings, and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self.sync()
        await self._redis.aclose()

    async def sync(self) -> None:
        """Tell what was taken since the last time, and learn what others took."""
        told = [
            (buckets, key, amount, _name(buckets.name, key))
            for buckets in self._buckets
            for key, amount in (buckets.taken or {}).items()
        ]
        if not told:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            for _, _, amount, name in told:
                pipeline.incrbyfloat(name, amount)
                pipeline.expire(name, KEPT_SECONDS)
            answers = await pipeline.execute()
        now = time.monotonic()
        for (buckets, key, amount, name), total in zip(told, answers[::2], strict=True):
            self._told(buckets, key, amount)
            before, at = self._totals.get(name, (total - amount, now))
            self._totals[name] = total, now
            others = total - amount - before
            if others > 0:
                buckets.drain(key, others, now - at)
        if len(self._totals) > 2 * MAX_UNTOLD:
            self._totals.clear()

    def _told(self, buckets: Buckets, key: str, amount: float) -> None:
        """Take off what was told; more may have been taken while Redis answered."""
        assert buckets.taken is not None
        rest = buckets.taken[key] - amount
        if rest > 0:
            buckets.taken[key] = rest
        else:
            del buckets.taken[key]

    async def _run(self) -> None:
        pause = SYNC_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self.sync()
            except (RedisError, OSError, TimeoutError) as error:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                self._forget_untold()
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

    def _forget_untold(self) -> None:
        for buckets in self._buckets:
            if buckets.taken is not None and len(buckets.taken) > MAX_UNTOLD:
                buckets.taken.clear()


def _name(kind: str, key: str) -> str:
    """The key in Redis; hashed, since it may be somebody's address."""
    return f"tidemark:taken:{kind}:{blake2b(key.encode(), digest_size=12).hexdigest()}"
