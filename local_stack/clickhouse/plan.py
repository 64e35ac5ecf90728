"""From a request to what the engine is to run.

    Asked + body ──▶ plan(): Plan = preparation of a connection, the work, tidying up

The body is taken here, so a plan may point to spool files, which live as long as their request.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from local_stack.clickhouse import external, spool, statement
from local_stack.clickhouse.request import Asked
from local_stack.clickhouse.response import DEFAULT_FORMAT
from local_stack.clickhouse.spool import MakeFile, Receive, Taken
from local_stack.clickhouse.statement import Rows


@dataclass(frozen=True)
class Plan:
    """What to run for a request: rows through a pipe, or a statement with a short answer."""

    work: Rows | bytes
    format: str
    prepare: tuple[bytes, ...] = ()
    restore: tuple[bytes, ...] = ()
    reads: bool = False
    changes_session: bool = False


async def plan(asked: Asked, receive: Receive, make: MakeFile) -> Plan:
    """Take the body, and say what to run. Files are made with `make`."""
    encoding = asked.headers.get("content-encoding", "")
    pieces = spool.body(receive)
    if not asked.is_form:
        taken = await spool.take(asked.query, pieces, encoding, make)
        return await _plan(asked, taken, (), ())
    file, path = make()
    async for piece in spool.decoded(pieces, encoding):
        file.write(piece)
    file.close()
    form = external.read_form(asked.content_type, path, make)
    asked = asked.with_form(form.values)
    taken = await spool.take(asked.query, _nothing(), "", make)
    return await _plan(asked, taken, external.create(form, asked.external), external.drop(form))


async def _plan(
    asked: Asked, taken: Taken, before: tuple[bytes, ...], after: tuple[bytes, ...]
) -> Plan:
    prepare = (*asked.prepare(), *before)
    fallback = asked.default_format or DEFAULT_FORMAT
    if taken.load is not None and taken.file is not None:
        work = taken.load.render(str(taken.file), taken.compression)
        return Plan(work, fallback, prepare, after)
    if len(taken.text) > spool.LONG_BYTES:
        parsed = await asyncio.to_thread(statement.parse, taken.text)
    else:
        parsed = statement.parse(taken.text)
    fmt = parsed.format or fallback
    if isinstance(parsed, Rows):
        return Plan(parsed, fmt, prepare, after, reads=True)
    return Plan(
        parsed.text,
        fmt,
        prepare,
        after,
        reads=parsed.reads,
        changes_session=parsed.changes_session,
    )


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece
