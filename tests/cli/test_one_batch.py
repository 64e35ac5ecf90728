"""`tidemark batch ID`: where a batch stands, and what became of each attempt at it."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import CliRunner, Result

from assets.pipeline.errors import BatchError
from assets.pipeline.staging import stage_batches
from orchestration.cli import tidemark
from tests.stack import Stack


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


def test_a_batch_that_is_not_there(new_stack: Callable[..., Stack]) -> None:
    """It says where to look."""
    stack = new_stack()
    result = run(stack, "batch", "nothing")
    assert isinstance(result.exception, BatchError)
    assert "tidemark status" in str(result.exception)
