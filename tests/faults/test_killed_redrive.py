"""A redrive is killed between two steps; whoever comes next finishes it, every letter once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from assets.pipeline.audit import balance_of, reprove, unbalanced, untiled
from assets.pipeline.batch import Balance, Kind, State
from assets.pipeline.failpoints import POINTS, VARIABLE
from assets.pipeline.redrive import Wanted, redrive
from orchestration.ledger.projects import create_project
from tests.faults.conftest import WORKER_SECONDS
from tests.forks import Forked
from tests.records import Sent, value_of
from tests.stack import Place, Stack

NewStack = Callable[..., Stack]

ROW_OF_POINT = {
    "before-plan": "redrive: before its plan is stored",
    "after-plan": "redrive: planned, or being staged",
    "while-staging": "redrive: planned, or being staged",
    "half-published": "redrive: planned, or being staged",
    "after-stage": "redrive: planned, or being staged",
    "after-register": "redrive: registered, before the insert",
    "before-insert": "redrive: registered, before the insert",
    "before-check": "redrive: registered, before the insert",
    "before-send": "redrive: registered, before the insert",
    "after-send": "redrive: inserted, the ledger does not know",
    "after-insert": "redrive: inserted, the ledger does not know",
    "after-loaded": "redrive: loaded, old batches not brought up to date",
    "after-commit": "redrive: loaded, old batches not brought up to date",
    "after-dead-letters": "redrive: loaded, old batches not brought up to date",
    "after-mirror": "redrive: loaded, old batches not brought up to date",
}

UNKNOWN = Wanted(reasons=("unknown_project",))


@dataclass
class Letters:
    """A stack whose topic has events of a project that came before it: each also as a resend."""

    stack: Stack
    token: str
    next_number: int = 0
    events: list[Place] = field(default_factory=list)  # where rows have to be in the end
    rejected: list[Place] = field(default_factory=list)  # the dead letters, for good
    duplicates: list[Place] = field(default_factory=list)

    def come(self) -> None:
        """Four dead letters that will be events, one that repeats a row, one that is broken."""
        first, self.next_number = self.next_number, self.next_number + 5
        key = f"{self.token}:person".encode()
        numbers = [*range(first, first + 4), first + 4]
        row = self.stack.send(value_of(first + 4))
        letters = self.stack.send(
            *(Sent(value_of(n, project_id=0), n % 2, key=key) for n in numbers), b"{"
        )
        self.events += [*row, *letters[:4]]
        self.duplicates.append(letters[4])
        self.rejected += letters
        self.stack.run()

    def start(self, point: str, **environment: str) -> Forked:
        """`tidemark redrive` of all of them, which kills (or stops) itself at the point."""
        command = ["-c", "from orchestration.cli import main; main()"]
        settings = self.stack.settings.environment()
        return Forked(
            [*command, "redrive", "--reason", "unknown_project"],
            {**os.environ, **settings, **environment, VARIABLE: point},
        )

    def kill_at(self, point: str) -> None:
        """Let a redrive die there."""
        assert self.start(point).wait(WORKER_SECONDS) == -signal.SIGKILL, point

    def prove(self, after: str) -> None:
        """Each letter is where it has to be, once, and every balance says the same."""
        stack, batches = self.stack, self.stack.batches()
        assert {batch.state for batch in batches} == {State.COMMITTED}, after
        assert all(batch.dead_letters_loaded_at for batch in batches), after
        account = stack.account()
        for found, wanted in (
            (account.events, self.events),
            (account.dead_letters, self.rejected),
            (account.duplicates, self.duplicates),
        ):
            assert Counter(found) == Counter(wanted), after
        redriven = len(self.duplicates) * 4
        rows, rejected = len(self.events), len(self.rejected)
        assert balance_of(batches) == Balance(
            ok=rows - redriven, rejected=rejected, redriven=redriven
        )
        assert stack.rows(
            "SELECT sum(ok), sum(rejected), sum(redriven), sum(duplicate) "
            "FROM {database}.batches FINAL"
        ) == [(rows, rejected, redriven, len(self.duplicates))], after
        findings = unbalanced(batches) + untiled(batches)
        kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
        findings += reprove(stack.client, stack.database, batches, kinds)
        assert findings == [], after


@pytest.fixture
def letters(new_stack: NewStack, ledger_values: dict[str, object]) -> Letters:
    """On a ledger of either kind."""
    stack = new_stack(**ledger_values).make_topic(2)
    return Letters(stack, create_project(stack.ledger, "shop").token)


@pytest.mark.matrix(*dict.fromkeys(ROW_OF_POINT.values()))
@pytest.mark.parametrize("ledger_values", ["sqlite"], indirect=True)
def test_redrives_killed_at_each_point_are_finished(letters: Letters) -> None:
    """By a micro-batch or by another redrive, in turns; nothing is lost and nothing doubled."""
    assert {*ROW_OF_POINT, "between-topics"} == set(POINTS)
    finishers = cycle([letters.stack.run, lambda: redrive(letters.stack.worker(), UNKNOWN)])
    for point, finish in zip(ROW_OF_POINT, finishers, strict=False):
        letters.come()
        letters.kill_at(point)
        finish()
        if point == "before-plan":  # nothing was begun, so nobody has finished it
            redrive(letters.stack.worker(), UNKNOWN)
        letters.prove(point)


@pytest.mark.matrix(*dict.fromkeys(ROW_OF_POINT.values()))
@pytest.mark.parametrize("ledger_values", ["postgresql"], indirect=True)
def test_one_redrive_killed_at_one_point_after_the_other_gets_through(letters: Letters) -> None:
    """Each command carries the same letters one point further than the one before."""
    letters.come()
    for point in ROW_OF_POINT:
        letters.kill_at(point)
    redrive(letters.stack.worker(), UNKNOWN)
    letters.prove("all")
    assert sum(batch.is_redrive for batch in letters.stack.batches()) == 1


@pytest.mark.matrix("redrive: paused, another worker has finished it")
@pytest.mark.parametrize(
    ("ledger_values", "point"),
    [("sqlite", "while-staging"), ("postgresql", "before-send"), ("sqlite", "after-send")],
    indirect=["ledger_values"],
)
def test_a_paused_redrive_is_refused_by_the_fence(letters: Letters, point: str) -> None:
    """It wakes when a micro-batch has done its work: what it still inserts is dropped."""
    letters.come()
    paused = letters.start(f"{point}:stop", TIDEMARK_LEASE_SECONDS="1")
    try:
        assert paused.await_stop()
        with letters.stack.ledger.begin() as connection:
            connection.exec_driver_sql("UPDATE leases SET expires_at = 0")
        letters.stack.run()
        paused.send_signal(signal.SIGCONT)
        assert paused.wait(WORKER_SECONDS) == 1
    finally:
        paused.kill()
    letters.prove(point)
