"""`tidemark redrive`: what it prints, what it does when nothing is chosen, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from assets.pipeline.batch import State
from assets.pipeline.errors import LeaseHeld
from orchestration.ledger.batches import set_state
from orchestration.ledger.gaps import gap_found
from orchestration.ledger.projects import create_project
from tests.cli.test_topics import run
from tests.records import Sent, too_large, value_of
from tests.stack import Stack


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """Three events of a project that is there by now, something broken, something too large."""
    stack = new_stack().make_topic()
    project = create_project(stack.ledger, "shop")
    key = f"{project.token}:person".encode()
    stack.send(*(Sent(value_of(n, project_id=0), key=key) for n in range(3)))
    stack.send(b"no json", too_large(9))
    stack.run()
    return stack


def test_nothing_chosen_is_a_dry_run(stack: Stack) -> None:
    """It shows what would come of all, says how to do it, and does nothing."""
    shown = run(stack, "redrive")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "dry run: 4 dead letters would be tried again",
        "  not_json: 1 would be rejected again (not_json)",
        "  unknown_project: 3 would become events",
        "  left out: 1 too_large (never: only evidence of it was kept)",
        "nothing was done: choose some (--reason, --project, --date, --batch), or say --all",
    ]
    document = json.loads(run(stack, "redrive", "--json").stdout)
    assert (document["dry_run"], document["events"], document["batches"]) == (True, 3, [])
    assert json.loads(run(stack, "redrive", "--all", "--dry-run", "--json").stdout) == document
    assert stack.account().events == []


def test_a_choice_is_done(stack: Stack) -> None:
    """One batch with the rows, in words or as a document; the second time there is nothing."""
    done = run(stack, "redrive", "--reason", "unknown_project", "--limit", "1")
    assert done.exit_code == 0, done.output
    assert "  unknown_project: 1 became events" in done.stdout
    assert ": 1 rows, proved" in done.stdout
    document = json.loads(run(stack, "redrive", "--project", "1", "--json").stdout)
    assert (document["letters"], document["events"]) == (2, 2)
    [batch] = document["batches"]
    assert (batch["state"], batch["letters"], batch["ok"]) == ("committed", 2, 2)
    again = run(stack, "redrive", "--project", "1")
    assert again.stdout.splitlines() == [
        "no dead letter that matches can be tried",
        "  left out: 1 too_large (never: only evidence of it was kept)",
        "  left out: 3 unknown_project (is an event since an earlier redrive)",
    ]
    assert len(stack.account().events) == 3


def test_what_makes_no_sense_is_refused(stack: Stack) -> None:
    """A reason, date or number that cannot be is a misspelt command; an unknown project fails."""
    for arguments in (["--reason", "bad_luck"], ["--date", "yesterday"], ["--limit", "0"]):
        assert run(stack, "redrive", *arguments).exit_code == 2
    assert run(stack, "redrive", "--project", "77").exit_code == 1
    assert run(stack, "redrive", "--batch", "nothing").exit_code == 1


def test_only_a_redrive_that_waits_is_given_up(stack: Stack) -> None:
    """Neither other batches, nor one that is done; and the option stands alone."""
    [old] = stack.batches()
    assert run(stack, "redrive", "--reason", "unknown_project").exit_code == 0
    [done] = [batch for batch in stack.batches() if batch.is_redrive]
    for batch_id, told in (
        (old.batch_id, "is no redrive"),
        (done.batch_id, "is committed: it does not wait for anybody"),
    ):
        refused = run(stack, "redrive", "--give-up", batch_id)
        assert refused.exit_code == 1
        assert told in str(refused.exception)
    assert run(stack, "redrive", "--give-up", done.batch_id, "--all").exit_code == 2
    with stack.worker().lease() as lease:
        set_state(stack.ledger, lease, done.batch_id, State.SUSPECT)
    refused = run(stack, "redrive", "--give-up", done.batch_id)
    assert "has 3 rows in" in str(refused.exception)
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{done.batch_id}' "
        "SETTINGS mutations_sync = 1"
    )
    given_up = run(stack, "redrive", "--give-up", done.batch_id)
    assert f"redrive {done.batch_id} is superseded: its 3 dead letters" in given_up.stdout
    assert "batches   1 superseded" in run(stack, "status").stdout
    again = run(stack, "redrive", "--reason", "unknown_project")
    assert "unknown_project: 3 became events" in again.stdout
    assert len(stack.account().events) == 3


def test_the_gap_of_a_redrive_says_what_can_be_done(stack: Stack) -> None:
    """It is no loss that could be accepted; given up, it waits no more."""
    assert run(stack, "redrive", "--reason", "unknown_project").exit_code == 0
    [redriven] = [batch for batch in stack.batches() if batch.is_redrive]
    with stack.worker().lease() as lease:
        set_state(stack.ledger, lease, redriven.batch_id, State.SUSPECT)
        set_state(stack.ledger, lease, redriven.batch_id, State.LOADING)
        gap_found(stack.ledger, lease, redriven.batch_id, "events", "", 0, "gone")
    stack.client.command(
        f"ALTER TABLE {stack.database}.events DELETE WHERE _batch_id = '{redriven.batch_id}' "
        "SETTINGS mutations_sync = 1"
    )
    listed = run(stack, "gaps").stdout
    assert f"batch {redriven.batch_id}: a redrive of 3 dead letters" in listed
    assert f"WAITS: `tidemark redrive --give-up {redriven.batch_id}`, or `tidemark retry" in listed
    assert "accept" not in listed
    assert "records   3 dead letters of" in run(stack, "batch", redriven.batch_id).stdout
    assert run(stack, "redrive", "--give-up", redriven.batch_id).exit_code == 0
    listed = run(stack, "gaps").stdout
    assert "given up by" in listed
    assert "WAITS" not in listed


def test_while_another_worker_is_at_work_it_fails(stack: Stack) -> None:
    """It names who holds the lease, and plans nothing."""
    with stack.worker().lease():
        result = run(stack, "redrive", "--all")
    assert isinstance(result.exception, LeaseHeld)
    assert not any(batch.is_redrive for batch in stack.batches())
