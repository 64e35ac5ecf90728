"""The answer to a query with rows: as they come, or all at the end.

    engine ──pipe──▶ the first `buffer_size` bytes, held back ──▶ the answer's head ──▶ the rest

While nothing has been sent, a failing query is answered with its error and status. After that it
can only be told inside the body, behind the tag that the head announced. `wait_end_of_query=1`
spools all rows first, so there the status and the summary are always true.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from local_stack.clickhouse import response
from local_stack.clickhouse.engine import Job, Outcome
from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.exchange import Exchange
from local_stack.clickhouse.pipe import Pipe
from local_stack.clickhouse.plan import Plan
from local_stack.clickhouse.request import Asked
from local_stack.clickhouse.runner import Client, Runner
from local_stack.clickhouse.spool import MakeFile
from local_stack.clickhouse.statement import Rows

log = logging.getLogger(__name__)

_COPY_BYTES = 1 << 18


@dataclass(frozen=True)
class Turn:
    """One request's query, with all that it takes to run and answer it."""

    asked: Asked
    plan: Plan
    runner: Runner
    client: Client
    to: Exchange
    make: MakeFile
    connection: Any
    version: str


@dataclass(frozen=True)
class _Stream:
    """Rows on their way: the job, its pipe, and how the bytes in it are encoded."""

    future: "Future[Outcome]"
    pipe: Pipe
    encoding: str

    async def outcome(self) -> Outcome:
        """What the query did, once its rows have been read."""
        return await asyncio.wrap_future(self.future)


async def answer(turn: Turn, rows: Rows, encoding: str) -> None:
    """Run the query and send its rows."""
    pipe = Pipe()
    compression = response.engine_compression(encoding)
    text, clause = rows.render(pipe.path, compression, turn.plan.format)
    job = Job(
        text,
        turn.plan.format,
        turn.asked.query_id,
        asked=rows.before + rows.after,
        prepare=turn.plan.prepare,
        restore=turn.plan.restore,
    )
    future = turn.runner.start(job, turn.asked, turn.connection, keeps_database=True, streams=True)
    future.add_done_callback(lambda _: pipe.finish())
    stream = _Stream(future, pipe, encoding)
    try:
        with _without(clause.decode()):
            if turn.asked.waits_for_end:
                await _at_the_end(turn, stream)
            else:
                await _as_they_come(turn, stream)
    finally:
        # Closed first: whatever ended this, the engine must not be left waiting for a reader.
        pipe.close()
        if not future.done():
            await turn.runner.stop(future, turn.asked.query_id)


async def _as_they_come(turn: Turn, stream: _Stream) -> None:
    held: list[bytes] = []
    size = 0
    while size <= turn.asked.buffer_bytes:
        piece = await turn.client.or_gone(stream.pipe.read())
        if not piece:
            await _whole(turn, stream, b"".join(held))
            return
        held.append(piece)
        size += len(piece)
    tag = secrets.token_hex(8)
    headers = response.of_rows(turn.plan.format, stream.encoding) + response.summary(None)
    await turn.to.begin(200, [*headers, (b"X-ClickHouse-Exception-Tag", tag.encode())])
    for piece in held:
        await turn.to.more(piece)
    held.clear()
    while piece := await turn.client.or_gone(stream.pipe.read()):
        await turn.to.more(piece)
    try:
        await stream.outcome()
    except ClickHouseError as error:
        # In a compressed body nothing more can be told; it ends short, and a client notices that.
        if not stream.encoding:
            await turn.to.more(response.late_error(tag, error.text(turn.version)))
        log.warning("query %s failed after its answer had begun: %s", turn.asked.query_id, error)
        return
    await turn.to.end()


async def _whole(turn: Turn, stream: _Stream, payload: bytes) -> None:
    outcome = await stream.outcome()
    encoding = stream.encoding
    if response.is_empty(encoding, payload):
        payload, encoding = b"", ""
    headers = response.of_rows(turn.plan.format, encoding)
    await turn.to.whole(200, headers + response.summary(outcome, len(payload)), payload)


async def _at_the_end(turn: Turn, stream: _Stream) -> None:
    file, path = turn.make()
    first = b""
    size = 0
    while piece := await turn.client.or_gone(stream.pipe.read()):
        first = first or piece
        file.write(piece)
        size += len(piece)
    file.close()
    if size == len(first):
        await _whole(turn, stream, first)
        return
    outcome = await stream.outcome()
    headers = response.of_rows(turn.plan.format, stream.encoding) + response.summary(outcome, size)
    await turn.to.begin(200, response.with_length(headers, size))
    with path.open("rb") as rows:
        while piece := rows.read(_COPY_BYTES):
            await turn.to.more(piece)
    await turn.to.end()


@contextmanager
def _without(clause: str) -> Iterator[None]:
    """An error's text speaks of the query as it was asked, without what was added to it."""
    try:
        yield
    except ClickHouseError as error:
        loose = r"\s+".join(re.escape(word) for word in clause.split())
        message = re.sub(rf"\s*{loose}", "", error.message)
        raise ClickHouseError(error.code, error.name, message) from None
