"""Leases: one worker on a topic at a time, with a fencing number that only ever grows.

A worker that falls silent (killed, paused, cut off) loses its lease when it expires, or at once
when it ran on this host and its process is gone. Every write to a batch names the fence of the
worker's lease, so what a replaced worker still tries to write is refused by the ledger.

An import takes a lease for one batch after the other. Whoever else wants it asks for a turn, which
the import grants before its next batch; the turn is a lease that nobody holds, and only expires.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from assets.pipeline.errors import LeaseHeld, LeaseLost
from orchestration.ledger.connection import is_of_a_wrong_clock, now_us, reading
from orchestration.ledger.tables import leases
from orchestration.ledger.upsert import INSERTS
from orchestration.process_stat import stat_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """A lease that was taken: its name and the fence that goes with every write under it."""

    name: str
    fence: int


@contextmanager
def held_lease(ledger: Engine, name: str, seconds: float) -> Iterator[Lease]:
    """Hold the lease for the length of a with-block, renewing it in the background.

    Raises LeaseHeld when a live worker has it.
    """
    lease = _take(ledger, name, seconds)
    done = threading.Event()
    renewer = threading.Thread(
        target=_keep,
        args=(ledger, lease, seconds, done),
        name=f"lease {name}",
        daemon=True,
    )
    renewer.start()
    try:
        yield lease
    finally:
        done.set()
        renewer.join()
        _release(ledger, lease)


def _release(ledger: Engine, lease: Lease) -> None:
    try:
        with ledger.begin() as connection:
            connection.execute(
                update(leases)
                .where(leases.c.name == lease.name, leases.c.fence == lease.fence)
                .values(holder="", expires_at=0)
            )
    except SQLAlchemyError as error:
        # It expires by itself; what ended the work, if anything, is the error to be seen.
        log.warning("lease %s could not be released: %s", lease.name, error)


def _take(ledger: Engine, name: str, seconds: float) -> Lease:
    now = now_us()
    with ledger.begin() as connection:
        row = connection.execute(
            select(leases).where(leases.c.name == name).with_for_update()
        ).one_or_none()
        if row is not None:
            if row.holder and _runs(row, now) and not _is_gone(row.holder):
                raise LeaseHeld(
                    f"{row.holder} is at work on {name} "
                    f"(its lease runs for another {(row.expires_at - now) // 1_000_000 + 1} s)"
                )
            fence = row.fence + 1
            taken = connection.execute(
                update(leases)
                .where(leases.c.name == name, leases.c.fence == row.fence)
                .values(fence=fence, holder=_myself(), **_times(seconds))
            )
            if taken.rowcount != 1:
                raise LeaseHeld(f"another worker has just taken {name}")
            return Lease(name, fence)
        try:
            connection.execute(
                insert(leases).values(name=name, fence=1, holder=_myself(), **_times(seconds))
            )
        except IntegrityError as error:
            raise LeaseHeld(f"another worker has just taken {name}") from error
        return Lease(name, 1)


def _keep(ledger: Engine, lease: Lease, seconds: float, done: threading.Event) -> None:
    while not done.wait(seconds / 3):
        try:
            with ledger.begin() as connection:
                renewed = connection.execute(
                    update(leases)
                    .where(leases.c.name == lease.name, leases.c.fence == lease.fence)
                    .values(**_times(seconds))
                )
        except SQLAlchemyError as error:
            log.warning("lease %s could not be renewed, trying again: %s", lease.name, error)
            continue
        if renewed.rowcount != 1:
            return  # taken over: the next fenced write says so


def check_fence(connection, lease: Lease) -> None:  # type: ignore[no-untyped-def]
    """Raise LeaseLost, inside the caller's transaction, unless the lease is still ours."""
    fence = connection.execute(
        select(leases.c.fence).where(leases.c.name == lease.name).with_for_update()
    ).scalar_one_or_none()
    if fence != lease.fence:
        raise LeaseLost(
            f"another worker took over {lease.name} (fence {fence}, ours was {lease.fence}); "
            "this one wrote nothing more"
        )


def assert_held(ledger: Engine, lease: Lease) -> None:
    """Raise LeaseLost unless the lease is ours now."""
    with ledger.begin() as connection:
        check_fence(connection, lease)


TURN_SECONDS = 5.0
"""How long a turn that was asked for is waited for, unless it is asked for again."""


def ask_for_turn(ledger: Engine, name: str) -> None:
    """Let an import know that somebody else wants the lease."""
    times = _times(TURN_SECONDS)
    asking = INSERTS[ledger.dialect.name](leases).values(
        name=_turn(name), fence=0, holder="", **times
    )
    with ledger.begin() as connection:
        connection.execute(asking.on_conflict_do_update(index_elements=["name"], set_=times))


def is_turn_asked_for(ledger: Engine, name: str) -> bool:
    """Whether somebody waits for a turn now."""
    with reading(ledger) as connection:
        row = connection.execute(select(leases).where(leases.c.name == _turn(name))).one_or_none()
    return row is not None and _runs(row, now_us())


def take_turn(ledger: Engine, name: str) -> None:
    """Nobody waits any more: whoever has asked has the lease."""
    with reading(ledger) as connection:
        asked = connection.scalar(select(leases.c.name).where(leases.c.name == _turn(name)))
    if asked is not None:
        with ledger.begin() as connection:
            connection.execute(delete(leases).where(leases.c.name == _turn(name)))


def have_same_holder(ledger: Engine, name: str, other: str) -> bool:
    """Whether one process has both of these leases now."""
    with reading(ledger) as connection:
        rows = connection.execute(select(leases).where(leases.c.name.in_([name, other]))).all()
    now = now_us()
    holders = [row.holder for row in rows if row.holder and _runs(row, now)]
    return len(holders) == 2 and len(set(holders)) == 1


def is_held(ledger: Engine, name: str) -> bool:
    """Whether somebody, as it seems, has the lease now."""
    with reading(ledger) as connection:
        row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
    return bool(
        row is not None and row.holder and _runs(row, now_us()) and not _is_gone(row.holder)
    )


def _turn(name: str) -> str:
    return f"turn/{name}"


def _times(seconds: float) -> dict[str, int]:
    now = now_us()
    return {"renewed_at": now, "expires_at": now + int(seconds * 1_000_000)}


def _runs(lease: Row[Any], now: int) -> bool:
    """Whether it has not run out. One that a clock which was ahead has renewed has."""
    return lease.expires_at > now and not is_of_a_wrong_clock(lease.renewed_at or 0)


def _myself() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_gone(holder: str) -> bool:
    """Whether the holder ran on this host and its process no longer exists."""
    host, _, pid = holder.rpartition(":")
    if host != socket.gethostname():
        return False
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(int(pid))


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and nobody has reaped it: its parent died first, say."""
    try:
        return stat_of(pid)[0] in "ZX"
    except OSError:
        return False  # it ended just now, or this is no Linux: the lease expires by itself
