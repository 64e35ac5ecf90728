"""Attempts: every try stands in the ledger, also the one whose process died."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from sqlalchemy import Engine

from assets.pipeline.batch import Range
from assets.pipeline.errors import BatchError, ClickHouseAway, ClickHouseRefused, SeenMeanwhile
from orchestration.ledger.attempts import attempt, attempts_of, last_failures, note_killed
from orchestration.ledger.batches import record_plan
from orchestration.ledger.leases import held_lease
from tests.stack import ROOT
from tests.staging import batch_of

BATCH = batch_of(Range(0, 0, 5))


@pytest.fixture
def ledger(ledger: Engine) -> Engine:
    """A ledger with one planned batch."""
    with held_lease(ledger, "topic/events", 60) as lease:
        record_plan(ledger, lease, BATCH)
    return ledger


def failing(ledger: Engine, error: BaseException) -> None:
    """An attempt at loading that fails."""
    with attempt(ledger, BATCH.batch_id, "load", "run"):
        raise error


def test_tries_are_numbered_by_stage(ledger: Engine) -> None:
    """Each stage of a batch counts its own tries, from 1."""
    numbers = []
    for stage in ("stage", "load", "load", "stage", "load"):
        with attempt(ledger, BATCH.batch_id, stage, "run") as number:
            numbers.append((stage, number))
    assert numbers == [("stage", 1), ("load", 1), ("load", 2), ("stage", 2), ("load", 3)]
    assert [(each.stage, each.number) for each in attempts_of(ledger, BATCH.batch_id)] == numbers


def test_an_attempt_is_on_record_before_it_ends(ledger: Engine) -> None:
    """While it runs it has a run, a host and a start, and neither end nor outcome."""
    with attempt(ledger, BATCH.batch_id, "load", "run-5"):
        (running,) = attempts_of(ledger, BATCH.batch_id)
    (ended,) = attempts_of(ledger, BATCH.batch_id)
    assert (running.run_id, running.ended_at, running.outcome) == ("run-5", None, None)
    assert running.host
    assert ended.outcome == "ok"
    assert ended.ended_at is not None
    assert ended.ended_at >= ended.started_at > 1_600_000_000_000_000


@pytest.mark.parametrize("error", [ValueError("no such thing"), KeyboardInterrupt("no such thing")])
def test_a_failure_is_on_record_and_goes_on(ledger: Engine, error: BaseException) -> None:
    """Class and text of the error are kept, and the error is raised as it was."""
    with pytest.raises(type(error)) as raised:
        failing(ledger, error)
    assert raised.value is error
    (failed,) = attempts_of(ledger, BATCH.batch_id)
    assert (failed.outcome, failed.error_class) == ("failed", type(error).__name__)
    assert failed.error_text == "no such thing"
    assert failed.ended_at is not None


def test_a_long_error_is_cut(ledger: Engine) -> None:
    """The text of an error does not fill the ledger."""
    with pytest.raises(ValueError, match="x"):
        failing(ledger, ValueError("x" * 1_000_000))
    (failed,) = attempts_of(ledger, BATCH.batch_id)
    assert failed.error_text == "x" * 4_000


def test_a_killed_attempt_is_seen_as_such(ledger: Engine, ledger_url: str) -> None:
    """It has no end, because nobody saw it; who takes its lease over says that it was killed."""
    code = (
        "import os, signal, sys\n"
        "from orchestration.ledger.attempts import attempt\n"
        "from orchestration.ledger.connection import open_ledger\n"
        "with attempt(open_ledger(sys.argv[1]), sys.argv[2], 'load', 'killed'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ledger_url, BATCH.batch_id], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with held_lease(ledger, "topic/events", 60) as lease:
        assert note_killed(ledger, lease, "other") == 0
        assert note_killed(ledger, lease, "events") == 1
        assert note_killed(ledger, lease, "events") == 0
    with attempt(ledger, BATCH.batch_id, "load", "next") as number:
        assert number == 2
    first, second = attempts_of(ledger, BATCH.batch_id)
    assert (first.run_id, first.ended_at, first.outcome) == ("killed", None, "killed")
    assert (second.run_id, second.outcome) == ("next", "ok")


def test_the_last_failures_are_found(ledger: Engine) -> None:
    """The newest first, so many at most, and only those of the topics that are asked for."""
    for text in ("one", "two", "three"):
        with pytest.raises(ValueError, match=text):
            failing(ledger, ValueError(text))
    with attempt(ledger, BATCH.batch_id, "load", "run"):
        pass
    with pytest.raises(SeenMeanwhile):
        failing(ledger, SeenMeanwhile("four: it is staged again, which is no failure"))
    assert [each.error_text for each in last_failures(ledger, 2, "events")] == ["three", "two"]
    assert last_failures(ledger, 2, "others") == []


def test_one_that_was_thought_dead_stays_so(ledger: Engine) -> None:
    """A worker that was only slow cannot rewrite what its successor has noted."""
    with attempt(ledger, BATCH.batch_id, "load", "slow"):
        with held_lease(ledger, "topic/events", 60) as lease:
            assert note_killed(ledger, lease, "events") == 1
    (slow,) = attempts_of(ledger, BATCH.batch_id)
    assert (slow.outcome, slow.ended_at, slow.retriable) == ("killed", None, True)


@pytest.mark.parametrize(
    ("error", "remedy", "retriable"),
    [
        (ClickHouseAway("too many parts", 252), "wait", True),
        (ClickHouseRefused("no such column", 16), "repair", True),
        (ClickHouseRefused("cannot parse", 27), "refused", False),
        (ClickHouseRefused("what is this", 98_765), "unknown", True),
    ],
)
def test_a_failure_says_what_is_done_about_it(
    ledger: Engine, error: BatchError, remedy: str, retriable: bool
) -> None:
    """The code, what the closed table says of it, and when it is tried next."""
    error.next_try_at = 5
    with pytest.raises(BatchError):
        failing(ledger, error)
    (failed,) = attempts_of(ledger, BATCH.batch_id)
    assert (failed.error_code, failed.remedy, failed.next_try_at) == (error.code, remedy, 5)
    assert failed.retriable is retriable
