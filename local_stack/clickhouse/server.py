"""The HTTP side: one ASGI application over one engine.

    request ──▶ plan.py: take the body, decide ──▶ runner.py: run it in a thread ──▶ answer

Nothing here waits for the engine but in a coroutine, so `/ping` answers at once whatever runs. A
client that leaves stops the query it was reading; what changes data runs to its end, as on a
server.
"""

import asyncio
import logging
from dataclasses import dataclass, replace

from local_stack.clickhouse import request, response, rows, spool
from local_stack.clickhouse.engine import Engine, Job
from local_stack.clickhouse.errors import ClickHouseError
from local_stack.clickhouse.exchange import Exchange, Message, Send
from local_stack.clickhouse.plan import plan as make_plan
from local_stack.clickhouse.request import Asked
from local_stack.clickhouse.rows import Turn
from local_stack.clickhouse.runner import Client, Runner
from local_stack.clickhouse.sessions import Sessions
from local_stack.clickhouse.spool import Disconnected, Receive
from local_stack.clickhouse.statement import Rows

log = logging.getLogger(__name__)

_TEXT = (b"Content-Type", b"text/plain; charset=UTF-8")
_OK = b"Ok.\n"
_METHODS = (b"Allow", b"GET, HEAD, POST, PUT, OPTIONS")


@dataclass(frozen=True)
class User:
    """The one user of the server."""

    name: str = "default"
    password: str = ""


class Server:
    """The ASGI application. `close()` ends what runs."""

    def __init__(self, engine: Engine, user: User) -> None:
        self._engine = engine
        self._user = user
        self._runner = Runner(engine)
        self._sessions = Sessions(engine)
        (compresses,) = engine.ask("SELECT toString(getSetting('enable_http_compression'))")[0]
        self._compresses = compresses in ("1", "true")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] != "http":
            return
        to = Exchange(send, head_only=scope["method"] == "HEAD")
        path, method = scope["path"], scope["method"]
        if path in ("/ping", "/replicas_status"):
            await to.whole(200, [_TEXT], _OK)
        elif path != "/":
            text = f"There is no handle {path}\n\nUse /ping for health checks; send queries to /\n"
            await to.whole(404, [_TEXT], text.encode())
        elif method == "OPTIONS":
            await to.whole(204, [_METHODS], b"")
        elif method not in ("GET", "HEAD", "POST", "PUT"):
            await to.whole(405, [_TEXT, _METHODS], b"Use GET or POST\n")
        elif method in ("GET", "HEAD") and b"query=" not in scope["query_string"]:
            await to.whole(200, [_TEXT], _OK)
        else:
            await self._query(scope, receive, to)

    async def _query(self, scope: Message, receive: Receive, to: Exchange) -> None:
        try:
            asked = request.read(scope)
            to.headers = response.common(asked, self._engine.timezone, self._engine.display_name)
            request.refuse_foreign_pages(asked)
            request.authenticate(asked, self._user.name, self._user.password)
            with spool.scratch(self._engine.spool) as make:
                await self._answer(asked, receive, to, make)
        except Disconnected:
            return
        except ClickHouseError as error:
            await self._refuse(error, to)
        except Exception as error:
            # The edge of a request: a full disk, or a fault of this server. The next one goes on.
            log.exception("a request failed")
            if not to.begun:
                text = f"{type(error).__name__}: {error}"
                await self._refuse(ClickHouseError(1001, "STD_EXCEPTION", text), to)

    async def _refuse(self, error: ClickHouseError, to: Exchange) -> None:
        text = error.text(self._engine.version)
        await to.whole(error.status, response.of_error(error), text.encode())

    async def _answer(
        self, asked: Asked, receive: Receive, to: Exchange, make: spool.MakeFile
    ) -> None:
        plan = await make_plan(asked, receive, make)
        session = self._sessions.use(
            asked.session_id, asked.session_seconds, remember=plan.changes_session
        )
        with session as connection:
            if asked.readonly and connection is None:
                plan = replace(plan, prepare=(*plan.prepare, b"SET readonly = 2"))
            elif asked.readonly and not plan.reads:
                # Set on a connection that is kept, `readonly` could not be taken back.
                raise ClickHouseError(164, "READONLY", "Cannot execute query in readonly mode.")
            async with Client(receive) as client:
                turn = Turn(
                    asked=asked,
                    plan=plan,
                    runner=self._runner,
                    client=client,
                    to=to,
                    make=make,
                    connection=connection,
                    version=self._engine.version,
                )
                if isinstance(plan.work, Rows):
                    encoding = response.encoding(asked, self._compresses)
                    await rows.answer(turn, plan.work, encoding)
                else:
                    await _answer_short(turn, plan.work)

    def close(self, seconds: float) -> bool:
        """Let what runs finish, then kill it; false if something does not end even so."""
        ended = self._runner.close(seconds)
        if ended:
            self._sessions.close()
        return ended


async def _answer_short(turn: Turn, text: bytes) -> None:
    """A statement whose answer is short or empty."""
    plan, asked = turn.plan, turn.asked
    job = Job(text, plan.format, asked.query_id, prepare=plan.prepare, restore=plan.restore)
    future = turn.runner.start(
        job, asked, turn.connection, keeps_database=not plan.changes_session, streams=False
    )
    # Shielded: the files of a load, and a session's connection, are the job's until it is over.
    over = asyncio.wrap_future(future)
    try:
        if plan.reads:
            await turn.client.or_gone(asyncio.wait({over}))
        outcome = await asyncio.shield(over)
    finally:
        if not over.done():
            await turn.runner.stop(future, asked.query_id)
    headers = response.of_rows(plan.format, "")
    headers += response.summary(outcome, len(outcome.payload))
    await turn.to.whole(200, headers, outcome.payload)
