"""The way of rows from the engine's thread to the event loop: a pipe of the operating system.

The engine writes to `path`; whoever reads sets the pace, and at most a pipe's worth of bytes is in
between. The end comes when the engine has closed its side and `finish()` has been called.
"""

import asyncio
import contextlib
import fcntl
import os

_PIPE_BYTES = 1 << 20
# Linux only; elsewhere a pipe keeps its default size.
_SET_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)


class Pipe:
    """One pipe, read by one coroutine."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        if _SET_SIZE is not None:
            # A user may have used up the pipe space the system grants; the default size does as
            # well.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._writer, _SET_SIZE, _PIPE_BYTES)
        self.path = f"/dev/fd/{self._writer}"

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        while True:
            try:
                return os.read(self._reader, _PIPE_BYTES)
            except BlockingIOError:
                await self._readable()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(self._reader, wake)
        try:
            await ready
        finally:
            loop.remove_reader(self._reader)

    def finish(self) -> None:
        """No one will open `path` any more."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Stop reading; what the engine still writes is lost."""
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
