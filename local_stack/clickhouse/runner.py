"""Jobs in threads: started, awaited, stopped when their client has gone, and ended with the server.

The event loop never waits for the engine; a job that nobody waits for any more is killed by its
query id, again and again until it is over, because one that has not begun yet cannot be found among
the running ones.
"""

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

from local_stack.clickhouse.engine import Engine, Job, Outcome
from local_stack.clickhouse.request import Asked
from local_stack.clickhouse.sessions import undo
from local_stack.clickhouse.spool import Disconnected, Receive

# Statements that run at once; more wait for their turn.
_MAX_RUNNING = 64
# Queries whose rows are being sent; one whose client is slow to read keeps its place.
_MAX_STREAMS = 64
_KILL_EVERY_S = 0.5

T = TypeVar("T")


class Runner:
    """The threads of one engine. Used from the event loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(_MAX_RUNNING, thread_name_prefix="query")
        # Rows have threads of their own: unread answers must not keep an INSERT waiting.
        self._streams = ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="rows")
        # Kills have a thread of their own: they must not wait behind what they are to stop.
        self._killers = ThreadPoolExecutor(1, thread_name_prefix="kill")
        self._running: set[Future[Outcome]] = set()

    def start(
        self, job: Job, asked: Asked, connection: Any, *, keeps_database: bool, streams: bool
    ) -> Future[Outcome]:
        """Begin the job; on a kept connection the request's own settings are undone after it.

        `streams`: it ends at the pace at which a client reads its rows.
        """

        def run() -> Outcome:
            if connection is None:
                return self._engine.run(job)
            database = keeps_database and bool(asked.database)
            before = undo(connection, asked.settings, database=database)
            return self._engine.run(replace(job, restore=(*job.restore, *before)), connection)

        future = (self._streams if streams else self._threads).submit(run)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    async def stop(self, future: Future[Outcome], query_id: str) -> None:
        """Have the job killed, and wait until it is over."""
        if future.cancel():
            return
        loop = asyncio.get_running_loop()
        over = asyncio.wrap_future(future)
        while not over.done():
            await loop.run_in_executor(self._killers, self._engine.kill, query_id)
            await asyncio.wait({over}, timeout=_KILL_EVERY_S)
        # Looked at, so that nobody reports an error that no one was there to hear.
        over.exception()

    def close(self, seconds: float) -> bool:
        """Let what runs finish, then kill it; false if something does not end even so."""
        if wait(set(self._running), seconds).not_done:
            self._engine.kill_all()
            if wait(set(self._running), seconds).not_done:
                return False
        self._threads.shutdown()
        self._streams.shutdown()
        self._killers.shutdown()
        return True


class Client:
    """Whether the client of one request is still there. The body must have been taken."""

    def __init__(self, receive: Receive) -> None:
        self._gone = asyncio.create_task(_disconnect(receive))

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gone.cancel()

    async def or_gone(self, awaitable: Awaitable[T]) -> T:
        """What is awaited, unless the client leaves first: then Disconnected."""
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            # Asked first: rows without end are always at hand, and would go on to nobody.
            if self._gone.done():
                raise Disconnected
            return task.result()
        finally:
            if not task.done():
                # Awaited, because what it waits on (a pipe) may be closed next.
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                # Looked at even where it is not wanted, so that it is not reported as lost.
                task.exception()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
