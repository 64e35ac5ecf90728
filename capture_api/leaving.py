"""The end of a process, told to load balancers before it comes.

    SIGTERM → readiness says 503, requests are taken as before → after the delay uvicorn's own end:
    stop accepting, answer what is in flight, flush

The delay is a setting, since only the operator knows how long the load balancer takes to notice.
A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from types import FrameType

log = logging.getLogger("tidemark.capture")


class Leaving:
    """Whether this process is about to end."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay = delay_seconds
        self.now = False

    def watch(self) -> None:
        """Be told of signals before the server is. Called on the event loop, in the main thread."""
        if not self._delay:
            return
        loop = asyncio.get_running_loop()
        server = signal.getsignal(signal.SIGTERM)

        def leave(number: int, frame: FrameType | None) -> None:
            if not callable(server):
                return
            if self.now:
                server(number, frame)
                return
            self.now = True
            log.info("leaving in %g s: readiness says so", self._delay)
            loop.call_soon_threadsafe(loop.call_later, self._delay, server, number, frame)

        signal.signal(signal.SIGTERM, leave)

    def problem(self) -> str | None:
        """Why no new requests should come here, or None."""
        return "this process is about to end" if self.now else None
