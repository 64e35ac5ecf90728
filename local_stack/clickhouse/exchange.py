"""The sending half of one HTTP exchange, over ASGI."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from local_stack.clickhouse.response import Headers, with_length

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Exchange:
    """One answer: either `whole`, or `begin`, `more` and `end`; without its end it is cut short."""

    def __init__(self, send: Send, *, head_only: bool) -> None:
        self._send = send
        self._head_only = head_only
        self.headers: Headers = []
        self.begun = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer whose body is at hand."""
        await self.begin(status, with_length(headers, len(body)))
        await self.more(body)
        await self.end()

    async def begin(self, status: int, headers: Headers) -> None:
        """The head of an answer; the headers common to all go in front."""
        self.begun = True
        pairs = [*self.headers, *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def more(self, body: bytes) -> None:
        """A piece of the body; waits while the client is slow."""
        if body and not self._head_only:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """The end of the body."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
