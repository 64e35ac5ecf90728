"""Rate limits that replicas share, on a real Redis, and what happens when it is away."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture_api.protection.buckets import Buckets
from capture_api.protection.shared import SharedBuckets
from tests.conftest import require_program, unused_port


class RedisServer:
    """A Redis of its own, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.program = require_program("redis-server", "redis-server")
        self.folder = folder
        self.port = unused_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it, and wait until it answers."""
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL
        )
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, "redis-server has ended"
            else:
                return self

    def kill(self) -> None:
        """As a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis."""
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()


def test_replicas_take_from_one_budget(redis: RedisServer) -> None:
    """Two replicas that are asked for as much as they give: together one burst, and a little."""

    async def main() -> None:
        replicas = [Buckets("project", shared=True) for _ in range(2)]
        shares = [SharedBuckets(redis.url, [replica]) for replica in replicas]
        passed = 0
        for _ in range(100):
            for replica, share in zip(replicas, shares, strict=True):
                passed += sum(replica.take("7", 1, 0.001, 100) == 0 for _ in range(5))
                await share.sync()
        # The first time each meets the key it does not know yet what the other took before.
        assert 95 <= passed <= 115
        for share in shares:
            await share.close()

    asyncio.run(main())


def test_without_redis_everybody_has_a_bucket_of_their_own(redis: RedisServer) -> None:
    """It fails open and says so, and shares again when Redis is back."""

    async def main() -> None:
        buckets = Buckets("project", shared=True)
        share = SharedBuckets(redis.url, [buckets])
        share.start()
        buckets.take("7", 1, 0.001, 100)
        while buckets.taken:
            await asyncio.sleep(0.01)
        redis.kill()
        while not share.away:
            assert buckets.take("7", 1, 1e6, 1e6) == 0
            await asyncio.sleep(0.01)
        redis.start()
        while share.away or buckets.taken:
            await asyncio.sleep(0.01)
        assert buckets.take("7", 1, 1e6, 1e6) == 0
        await share.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_addresses_do_not_stand_in_redis(redis: RedisServer) -> None:
    """What limits are counted by is hashed, and forgotten after a while."""

    async def main() -> None:
        buckets = Buckets("address", shared=True)
        share = SharedBuckets(redis.url, [buckets])
        buckets.take("203.0.113.9", 1, 1, 100)
        await share.sync()
        [name] = await share._redis.keys("*")
        assert b"203.0.113.9" not in name
        assert 0 < await share._redis.ttl(name) <= 120
        await share.close()

    asyncio.run(main())
