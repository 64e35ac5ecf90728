"""The capture API with a heartbeat: `python -m bench.beating`, else as `python -m capture_api`.

A task on its event loop sleeps a millisecond at a time. `GET /_longest_stall` says by how much it
overslept most since it was last asked: for that long the loop served nobody.
"""

from __future__ import annotations

import asyncio
import sys
import time

from capture_api import __main__ as capture
from capture_api.app import CaptureApp, create_app
from orchestration.settings import Settings

BEAT_S = 0.001
PATH = "/_longest_stall"


class Heart:
    """Beats on the event loop it is first asked on."""

    def __init__(self) -> None:
        self._longest = 0.0
        self._beating: asyncio.Task[None] | None = None

    async def longest_ms(self) -> float:
        """The longest time between two beats since this was last asked, in ms."""
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat())
        longest, self._longest = self._longest, 0.0
        return longest * 1000

    async def _beat(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.perf_counter()
            self._longest = max(self._longest, now - last - BEAT_S)
            last = now


def beating_app(settings: Settings) -> CaptureApp:
    """The application, and its heart."""
    app = create_app(settings)
    app.add_api_route(PATH, Heart().longest_ms)
    return app


if __name__ == "__main__":
    vars(capture)["create_app"] = beating_app
    sys.exit(capture.main())
