"""Leases: one worker at a time, and a number that tells the late ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from sqlalchemy import Engine, select, update

from assets.pipeline.errors import LeaseHeld, LeaseLost
from orchestration.ledger.leases import Lease, check_fence, held_lease
from orchestration.ledger.tables import leases
from tests.stack import ROOT


def expires_at(ledger: Engine) -> int:
    """When the only lease expires."""
    with ledger.begin() as connection:
        return int(connection.execute(select(leases.c.expires_at)).scalar_one())


def taken_by(ledger: Engine, holder: str, seconds: float) -> None:
    """Give the only lease to someone else."""
    with ledger.begin() as connection:
        until = int((time.time() + seconds) * 1_000_000)
        connection.execute(update(leases).values(holder=holder, expires_at=until))


def test_the_fence_grows_with_every_holder(ledger: Engine) -> None:
    """Each holder has a larger number than the one before, and the lease is free in between."""
    fences = []
    for _ in range(3):
        with held_lease(ledger, "topic/a", 60) as lease:
            fences.append(lease.fence)
    assert fences == [1, 2, 3]


def test_a_held_lease_is_refused(ledger: Engine) -> None:
    """The second is told who has it; another name is free."""
    with held_lease(ledger, "topic/a", 60):
        with (
            pytest.raises(LeaseHeld, match=f"{os.getpid()} is at work on topic/a"),
            held_lease(ledger, "topic/a", 60),
        ):
            pass
        with held_lease(ledger, "topic/b", 60) as other:
            assert other.fence == 1


def test_a_lease_is_free_after_an_error(ledger: Engine) -> None:
    """A holder that fails gives the lease back."""

    def fail() -> None:
        with held_lease(ledger, "topic/a", 60):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    with held_lease(ledger, "topic/a", 60) as lease:
        assert lease.fence == 2


def test_an_expired_lease_is_taken_over(ledger: Engine) -> None:
    """The late holder is told by its next write, and giving back does not free the new one's."""
    with held_lease(ledger, "topic/a", 60) as late:
        taken_by(ledger, "elsewhere:1", -1)
        with held_lease(ledger, "topic/a", 60) as lease:
            assert lease.fence == late.fence + 1
            with ledger.begin() as connection:
                check_fence(connection, lease)
                with pytest.raises(LeaseLost, match=r"fence 2, ours was 1"):
                    check_fence(connection, late)


@pytest.mark.parametrize(("ahead", "is_taken"), [(3600, True), (20, False)])
def test_a_lease_of_a_clock_that_was_ahead_is_taken_over(
    ledger: Engine, ahead: int, is_taken: bool
) -> None:
    """Nobody waits until that time; another host's clock may be ahead by less than a minute."""
    with held_lease(ledger, "topic/a", 60):
        pass
    with ledger.begin() as connection:
        at = int((time.time() + ahead) * 1_000_000)
        connection.execute(
            update(leases).values(holder="elsewhere:1", renewed_at=at, expires_at=at + 60_000_000)
        )
    if is_taken:
        with held_lease(ledger, "topic/a", 60) as lease:
            assert lease.fence == 2
            assert expires_at(ledger) < at
    else:
        with pytest.raises(LeaseHeld), held_lease(ledger, "topic/a", 60):
            pass


def test_giving_back_a_lost_lease_leaves_the_new_holder_alone(ledger: Engine) -> None:
    """When the late holder ends at last, the lease stays with who has it now."""
    with held_lease(ledger, "topic/a", 60):
        with ledger.begin() as connection:
            connection.execute(update(leases).values(fence=7))
        taken_by(ledger, "elsewhere:1", 60)
    with pytest.raises(LeaseHeld, match="elsewhere:1"), held_lease(ledger, "topic/a", 60):
        pass


def test_a_lease_is_renewed_while_it_is_held(ledger: Engine) -> None:
    """A holder that works for longer than its lease keeps it."""
    with held_lease(ledger, "topic/a", 0.3):
        first = expires_at(ledger)
        give_up = time.monotonic() + 30
        while expires_at(ledger) < first + 300_000:  # once the first one has run out
            assert time.monotonic() < give_up, "the lease was not renewed"


def test_a_lost_lease_is_not_renewed(ledger: Engine) -> None:
    """The renewal of a late holder does not touch the new holder's lease."""
    with held_lease(ledger, "topic/a", 0.3):
        with ledger.begin() as connection:
            connection.execute(update(leases).values(fence=7, holder="elsewhere:1", expires_at=5))
    assert expires_at(ledger) == 5


@pytest.mark.parametrize("is_reaped", [True, False])
def test_a_killed_holder_of_this_host_is_replaced_at_once(
    ledger: Engine, ledger_url: str, is_reaped: bool
) -> None:
    """A worker that was killed does not block the next one until its lease runs out.

    Nor does one that nobody reaps, because its parent was killed with it.
    """
    code = (
        "import os, signal, sys\n"
        "from orchestration.ledger.connection import open_ledger\n"
        "from orchestration.ledger.leases import held_lease\n"
        "with held_lease(open_ledger(sys.argv[1]), 'topic/a', 3600):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, ledger_url], cwd=ROOT)
    ended = os.waitid(os.P_PID, killed.pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    with held_lease(ledger, "topic/a", 60) as lease:
        assert lease.fence == 2
    killed.wait()


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_live_or_unknown_holder_is_left_its_lease(ledger: Engine, host: str) -> None:
    """A process that lives, or that runs where it cannot be looked up, keeps its lease."""
    with held_lease(ledger, "topic/a", 60):
        pass
    taken_by(ledger, f"{host}:{os.getppid()}", 60)
    with pytest.raises(LeaseHeld), held_lease(ledger, "topic/a", 60):
        pass


def test_a_fence_nobody_took_is_refused(ledger: Engine) -> None:
    """A lease that the ledger does not know is a lost one."""
    with ledger.begin() as connection, pytest.raises(LeaseLost):
        check_fence(connection, Lease("topic/never", 1))
