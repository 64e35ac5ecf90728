"""`tidemark batch ID`: where a batch stands, and what became of each attempt at it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import update

from assets.pipeline.batch import Range, State
from assets.pipeline.errors import BatchError, ClickHouseRefused
from assets.pipeline.staging import stage_batches
from orchestration.cli import tidemark
from orchestration.ledger.attempts import attempt
from orchestration.ledger.planned import add_planned
from orchestration.ledger.tables import batches
from tests.stack import Stack
from tests.staging import batch_of


def run(stack: Stack, *arguments: str, **changed: str) -> Result:
    """The command, as it is typed."""
    environment = {**stack.settings.environment(), **changed}
    return CliRunner().invoke(tidemark, arguments, env=environment)


def test_every_attempt_at_a_batch_is_shown(new_stack: Callable[..., Stack]) -> None:
    """Run, host, times, error, and what is done about it, as text and as JSON."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(3))
    (batch,) = stage_batches(stack.worker("run-7"))
    table = f"{stack.database}.events"
    stack.worker().clickhouse.command(f"ALTER TABLE {table} DROP COLUMN sdk")
    assert run(stack, "batch").exit_code == 1
    seen = json.loads(run(stack, "batch", batch.batch_id, "--json").stdout)
    assert (seen["state"], seen["balance"]["ok"]) == ("loading", 3)
    staged, load = seen["attempts"]
    assert (staged["run_id"], staged["outcome"], staged["retriable"]) == ("run-7", "ok", None)
    assert (load["error_code"], load["remedy"], load["retriable"]) == (16, "repair", True)
    assert load["next_try_at"] > load["ended_at"] >= load["started_at"]
    shown = run(stack, "batch", batch.batch_id).stdout
    assert f"batch     {batch.batch_id} is loading" in shown
    assert "attempt   load 1: failed" in shown
    assert "tried again from" in shown
    (trouble,) = json.loads(run(stack, "status", "--json").stdout)["trouble"]
    assert "the table events takes nothing since" in trouble
    assert "ATTENTION the table events takes nothing since" in run(stack, "status").stdout
    stack.client.command(f"ALTER TABLE {table} ADD COLUMN sdk LowCardinality(String)")
    assert run(stack, "batch").exit_code == 0
    assert "attempt   load 2: ok" in run(stack, "batch", batch.batch_id).stdout
    mirrored = stack.rows(
        "SELECT outcome, error_code, remedy, retriable, isNull(next_try_at) "
        "FROM {database}.batch_attempts FINAL WHERE stage = 'load' ORDER BY number"
    )
    assert mirrored == [("failed", 16, "repair", True, 0), ("ok", None, "", None, 1)]


def test_all_that_failed_are_given_back(new_stack: Callable[..., Stack]) -> None:
    """By state and by the code of the last error; a dry run names them and changes nothing."""
    stack = new_stack()
    waiting = {"b0": (State.FAILED, [27, 60]), "b1": (State.FAILED, [27]), "b2": (State.GAP, [])}
    with stack.ledger.begin() as connection:
        for number, (batch_id, (state, _)) in enumerate(waiting.items()):
            batch = replace(
                batch_of(Range(number, 0, 9)), batch_id=batch_id, topic=stack.settings.topic
            )
            add_planned(connection, batch)
            connection.execute(
                update(batches).where(batches.c.batch_id == batch_id).values(state=state)
            )
    for batch_id, (_, codes) in waiting.items():
        for code in codes:
            with (
                pytest.raises(ClickHouseRefused),
                attempt(stack.ledger, batch_id, "stage", "run"),
            ):
                raise ClickHouseRefused("no", code)

    def states() -> list[str]:
        return [batch.state for batch in stack.batches()]

    shown = run(stack, "retry", "--all", "--code", "27", "--dry-run").stdout
    assert "batch b1 of" in shown
    assert "dry run: 1 failed batch would be given back" in shown
    assert states() == ["failed", "failed", "gap"]
    assert "1 failed batch given back" in run(stack, "retry", "--all", "--code", "60").stdout
    assert states() == ["planned", "failed", "gap"]
    assert run(stack, "retry", "--all").exit_code == 0
    assert states() == ["planned", "planned", "gap"]
    assert run(stack, "retry", "--all", "--state", "gap").exit_code == 0
    assert states() == ["planned"] * 3
    assert "0 failed batches given back" in run(stack, "retry", "--all").stdout
    for misspelt in (["--all", "b0"], [], ["b0", "--dry-run"], ["--all", "--restage"]):
        assert run(stack, "retry", *misspelt).exit_code == 2


def test_a_batch_that_is_not_there(new_stack: Callable[..., Stack]) -> None:
    """It says where to look."""
    stack = new_stack()
    result = run(stack, "batch", "nothing")
    assert isinstance(result.exception, BatchError)
    assert "tidemark status" in str(result.exception)
