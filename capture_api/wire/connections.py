"""How many connections a process keeps, and how long each may take over what it is at.

    connections ──every second──▶ what is each at? ──the same for too long──▶ cut off

One sweep over all connections instead of a timer a request: a request costs nothing here, and a
connection is cut off up to one interval late. Invariant: a connection that makes no progress and
for which the server does no work is gone after its limit.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestration.settings import Settings

SPARE_FILES = 256
"""Open files that are no connections of clients: Kafka, the ledger, the log, the sockets."""

ENDED: Counter[str] = Counter()
"""How many connections this process has cut off or refused, by cause; read for /metrics."""

SURPLUS_CONNECTIONS = 256
"""Connections over the limit that are answered 503; what comes on top is cut off at once."""

log = logging.getLogger("tidemark.capture")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one process allows. Times in seconds."""

    connections: int
    head_seconds: float
    idle_seconds: float
    stall_seconds: float
    drain_bytes: int


def connection_limits(settings: Settings) -> ConnectionLimits:
    """The limits of the settings, within the open files that the system allows."""
    return ConnectionLimits(
        connections=_with_files(settings.capture_max_connections),
        head_seconds=settings.capture_head_timeout_seconds,
        idle_seconds=settings.capture_keep_alive_seconds,
        stall_seconds=settings.capture_stall_timeout_seconds,
        # Twice, so that a client whose body is a little too large can read why.
        drain_bytes=2 * settings.capture_max_body_bytes,
    )


def _with_files(connections: int) -> int:
    """So many connections, or those that there may be open files for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SURPLUS_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    possible = max(soft - SURPLUS_CONNECTIONS - SPARE_FILES, soft // 2)
    log.warning(
        "at most %d connections instead of %d: the system allows %d open files (ulimit -n)",
        possible,
        connections,
        soft,
    )
    return possible


class Sweep:
    """Looks at every connection of a process now and then, as long as there are any."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        shortest = min(limits.head_seconds, limits.idle_seconds, limits.stall_seconds)
        self._interval = min(1.0, shortest / 4)
        self._running = False
        self._told: Counter[str] = Counter()

    def watch(self, loop: asyncio.AbstractEventLoop, connections: Iterable[Any]) -> None:
        """Call `sweep(now)` of these connections until there are none."""
        if not self._running:
            self._running = True
            loop.call_later(self._interval, self._sweep, loop, connections)

    def _sweep(self, loop: asyncio.AbstractEventLoop, connections: Iterable[Any]) -> None:
        self._running = False
        there = list(connections)  # cutting one off changes them
        now = loop.time()
        for connection in there:
            connection.sweep(now)
        self._tell()
        if there:
            self.watch(loop, connections)

    def _tell(self) -> None:
        """One line for all that were cut off since the last sweep: they may be very many."""
        new = ENDED - self._told
        if new:
            self._told = ENDED.copy()
            log.info(
                "connections cut off or refused: %s",
                ", ".join(f"{count} {cause}" for cause, count in sorted(new.items())),
            )
