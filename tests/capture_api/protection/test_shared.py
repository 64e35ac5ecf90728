"""Rate limits that replicas share, on a real Redis, and what happens when it is away."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from capture_api.protection import shared
from capture_api.protection.buckets import Buckets
from capture_api.protection.shared import SharedBuckets
from capture_api.protection.waiting import SHARE, Waiting
from tests.conftest import require_program, unused_port

RATE = 1e-6
"""A rate at which nothing fills up while a test runs."""


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


def room(buckets: Buckets, key: str) -> int:
    """How many the key may still take at once; takes them."""
    count = 0
    while buckets.take(key, 1, RATE, 100) == 0:
        count += 1
    return count


async def total_of(share: SharedBuckets, key: str) -> float:
    """What Redis has of the project's takings."""
    return float(await share._redis.get(shared._name("project", key)) or 0)


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


def test_replicas_keep_one_line(redis: RedisServer) -> None:
    """Who is refused by one waits behind those whom the other has refused."""

    async def main() -> None:
        lines = [Waiting("waiting", shared=True) for _ in range(2)]
        shares = [SharedBuckets(redis.url, [line]) for line in lines]
        told: list[list[int]] = [[], []]
        for _ in range(5):
            for number, (line, share) in enumerate(zip(lines, shares, strict=True)):
                told[number].append(line.turn("7", SHARE, 0.5, 0.5))
                await share.sync()
        # Each of them makes the line longer by two seconds.
        assert told[0][-1] >= 15
        assert told[1][-1] >= 15
        for share in shares:
            await share.close()

    asyncio.run(main())


def test_without_redis_everybody_has_a_bucket_of_their_own(redis: RedisServer) -> None:
    """It fails open and says so, and shares again when Redis is back."""

    async def main() -> None:
        buckets, others = (Buckets("project", shared=True) for _ in range(2))
        share, other_share = (SharedBuckets(redis.url, [one]) for one in (buckets, others))
        share.start()
        buckets.take("7", 1, RATE, 100)
        while buckets.taken:
            await asyncio.sleep(0.01)
        redis.kill()
        while not share.away:
            buckets.take("gone", 1, RATE, 1e6)
            await asyncio.sleep(0.01)
        with pytest.raises((RedisError, OSError)):
            await share.sync()  # with nothing to tell it asks, and does not say that all is well
        assert room(buckets, "7") == 99
        redis.start()
        while share.away:
            await asyncio.sleep(0.01)
        for _ in range(2):  # the first time each meets the key again
            for one, its_share in ((others, other_share), (buckets, share)):
                one.take("8", 30, RATE, 100)
                await its_share.sync()
        assert room(buckets, "8") <= 10
        await share.close()
        await other_share.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_redis_did_without_answering_is_not_counted_twice(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose command was late does not pay for it again, out of its own bucket."""
    monkeypatch.setattr(shared, "ANSWER_SECONDS", 0.2)

    async def main() -> None:
        buckets = Buckets("project", shared=True)
        share = SharedBuckets(redis.url, [buckets])
        buckets.take("7", 1, RATE, 100)
        await share.sync()
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
        buckets.take("7", 40, RATE, 100)
        with pytest.raises(RedisError):
            await share.sync()
        redis.process.send_signal(signal.SIGCONT)
        while await total_of(share, "7") < 41:
            await asyncio.sleep(0.01)
        buckets.take("7", 1, RATE, 100)
        await share.sync()
        assert await total_of(share, "7") == 42
        assert room(buckets, "7") == 58
        await share.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_end_waits_for_what_is_being_told(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stops while Redis is slow to answer tells each taking once."""
    monkeypatch.setattr(shared, "ANSWER_SECONDS", 30.0)

    async def main() -> None:
        buckets = Buckets("project", shared=True)
        share, reader = (SharedBuckets(redis.url, [buckets]) for _ in range(2))
        buckets.take("7", 1, RATE, 100)
        await share.sync()
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
        telling = asyncio.Event()
        tell = share._tell

        async def noting(told: Any) -> None:
            telling.set()
            await tell(told)

        monkeypatch.setattr(share, "_tell", noting)
        buckets.take("7", 40, RATE, 100)
        share.start()
        await telling.wait()
        await asyncio.sleep(0.1)  # the command is on its way
        closing = asyncio.create_task(share.close())
        await asyncio.sleep(0.1)
        assert not closing.done(), "it waits for the answer"
        redis.process.send_signal(signal.SIGCONT)
        await closing
        assert await total_of(reader, "7") == 41
        await reader._redis.aclose()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_many_keys_are_told_in_pieces(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis reads one piece after the other, and has them all."""
    monkeypatch.setattr(shared, "MAX_TOLD_AT_ONCE", 10)

    async def main() -> None:
        buckets = Buckets("address", shared=True)
        share = SharedBuckets(redis.url, [buckets])
        for number in range(300):
            buckets.take(str(number), 1, 1, 100)
        before = (await share._redis.info("stats"))["total_reads_processed"]
        await share.sync()
        after = (await share._redis.info("stats"))["total_reads_processed"]
        assert after - before >= 30
        assert await share._redis.dbsize() == 300
        await share.close()

    asyncio.run(main())


def test_a_sync_tries_once() -> None:
    """Where somebody hangs up, it does not call again by itself."""
    calls = 0

    async def main() -> None:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            calls += 1
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        buckets = Buckets("project", shared=True)
        share = SharedBuckets(f"redis://127.0.0.1:{port}/0", [buckets])
        buckets.take("7", 1, RATE, 100)
        with pytest.raises((RedisError, OSError)):
            await share.sync()
        assert calls == 1
        assert not buckets.taken
        share.away = True
        await share.close()
        server.close()

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
