"""The job `redrive`: what a person starts from the launchpad, and what it leaves to be seen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

from assets import waiting_dates
from assets.pipeline import redrive
from assets.pipeline.batch import Kind
from assets.pipeline.errors import TransientError
from orchestration.definitions import definitions
from orchestration.ledger.access import read_access
from orchestration.ledger.projects import create_project
from tests.orchestration.runs import storage_is_away, storage_is_away_long
from tests.records import Sent, value_of
from tests.stack import Stack


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """Three events whose project is there by now, and something broken."""
    stack = new_stack(load_attempts=1).make_topic()
    project = create_project(stack.ledger, "shop")
    key = f"{project.token}:person".encode()
    stack.send(*(Sent(value_of(n, project_id=0), key=key) for n in range(3)), b"no json")
    stack.run()
    return stack


def _run(
    stack: Stack,
    instance: dg.DagsterInstance,
    tags: dict[str, str] | None = None,
    **config: Any,
) -> ExecuteInProcessResult:
    job = definitions(stack.settings).resolve_job_def("redrive")
    return job.execute_in_process(
        run_config={"ops": {"try_again": {"config": config}}},
        instance=instance,
        raise_on_error=False,
        tags=tags,
    )


def _said(instance: dg.DagsterInstance, run: ExecuteInProcessResult) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run.run_id))


def test_the_default_configuration_only_looks(stack: Stack, instance: dg.DagsterInstance) -> None:
    """Launched as it stands, it says what would come of all dead letters and changes nothing."""
    result = _run(stack, instance)
    assert result.success
    assert "unknown_project: 3 would become events" in _said(instance, result)
    assert "nothing was done: choose some in the launchpad" in _said(instance, result)
    assert stack.account().events == []
    assert len(stack.batches()) == 1


def test_a_choice_is_redriven_and_told(stack: Stack, instance: dg.DagsterInstance) -> None:
    """The rows name the run, and the table `events` has a materialization for the redrive."""
    result = _run(stack, instance, reasons=["unknown_project"])
    assert result.success, _said(instance, result)
    assert stack.rows("SELECT DISTINCT _run_id FROM {database}.events") == [(result.run_id,)]
    assert len(stack.account().events) == 3
    [record] = instance.fetch_materializations(dg.AssetKey("events"), limit=5).records
    assert record.partition_key == datetime.now(UTC).date().isoformat()
    materialization = record.asset_materialization
    assert materialization is not None
    assert materialization.metadata["rows"].value == 3
    assert materialization.metadata["letters_redriven"].value == 3
    assert "ranges" not in materialization.metadata
    [batch] = [batch for batch in stack.batches() if batch.is_redrive]
    assert materialization.metadata["batch_id"].value == batch.batch_id


def test_the_checks_hold_after_a_redrive(stack: Stack, instance: dg.DagsterInstance) -> None:
    """A micro-batch later, balances and lanes are green, and their numbers close."""
    assert _run(stack, instance, everything=True).success
    stack.send(value_of(50))
    result = (
        definitions(stack.settings)
        .resolve_job_def("micro_batch")
        .execute_in_process(instance=instance, partition_key=datetime.now(UTC).date().isoformat())
    )
    checks = result.get_asset_check_evaluations()
    assert all(check.passed for check in checks)
    [balance] = [
        check
        for check in checks
        if check.asset_key == dg.AssetKey("events") and check.check_name == "balance"
    ]
    numbers = {name: value.value for name, value in balance.metadata.items()}
    assert (numbers["ok"], numbers["rejected"], numbers["redriven"]) == (1, 4, 3)
    assert numbers["offsets"] == 5


def test_a_try_again_keeps_the_choice_of_the_first(
    stack: Stack, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step, or a run, that is tried again after it has planned chooses no more than it was to."""
    [token] = read_access(stack.ledger).tokens
    stack.send(*(Sent(value_of(n, project_id=0), key=f"{token}:x".encode()) for n in range(9, 18)))
    stack.run()
    fails: list[bool] = []

    def fail(point: str) -> None:
        if point == "after-plan" and fails.pop(0):
            raise TransientError("the ledger blinks")

    def run(tries: int, **tags: str) -> ExecuteInProcessResult:
        settings = stack.settings.model_copy(update={"load_attempts": tries})
        chosen = {"reasons": ["unknown_project"], "limit": 2}
        return _run(Stack(settings), instance, tags, **chosen)

    def letters() -> list[int]:
        return [batch.letters for batch in stack.batches() if batch.is_redrive]

    monkeypatch.setattr(redrive, "failpoint", fail)
    fails[:] = [True, False]
    assert run(tries=2).success
    assert letters() == [2]
    fails[:] = [True, False]
    failed = run(tries=1)
    assert not failed.success
    of_failed = {f"dagster/{which}_run_id": failed.run_id for which in ("parent", "root")}
    assert run(tries=1, **of_failed).success
    assert letters() == [2, 2]
    assert len(stack.account().events) == 4


def test_a_file_that_cannot_be_read_is_told(stack: Stack, instance: dg.DagsterInstance) -> None:
    """The run fails at once and names it, when all else is done."""
    stack.send(b"no json either")
    stack.run()
    batch = stack.batches()[-1]
    assert batch.staged is not None
    file = batch.staged.file(Kind.DEAD_LETTERS)
    assert file is not None
    stack.lake_file(file.path).unlink()
    result = _run(stack, instance, everything=True)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert file.path in str(failure.step_failure_data.user_failure_data)
    assert len(stack.account().events) == 3


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"reasons": ["bad_luck"]}, "no reason is called bad_luck"),
        ({"date": "yesterday"}, "'yesterday' is no date"),
        ({"batch": "nothing"}, "knows no batch nothing"),
    ],
)
def test_a_configuration_that_makes_no_sense_fails_at_once(
    stack: Stack, instance: dg.DagsterInstance, config: dict[str, Any], told: str
) -> None:
    """The run fails with one sentence, and nothing is planned."""
    result = _run(stack, instance, **config)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert told in str(failure.step_failure_data.user_failure_data)
    assert len(stack.batches()) == 1


@pytest.mark.parametrize("away", [storage_is_away, storage_is_away_long])
def test_dates_that_cannot_be_kept_red_are_left_to_the_checks(
    stack: Stack,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    away: Callable[..., None],
) -> None:
    """All was done by then: the run's log says so, and nothing is tried again."""
    monkeypatch.setattr(waiting_dates, "waiting_for_a_person", away)
    result = _run(stack, instance, reasons=["unknown_project"])
    assert result.success
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert "a date may be green until the next checks" in _said(instance, result)
