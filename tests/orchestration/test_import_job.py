"""The job `import_files`: what a person starts from the launchpad, and what it leaves to see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

from assets import waiting_dates
from assets.pipeline.batch import State
from orchestration.definitions import definitions
from orchestration.ledger.projects import create_project
from orchestration.partitions import FIRST_ARRIVAL_DATE
from tests.exports import lines_of, write_lines
from tests.orchestration.runs import storage_is_away
from tests.stack import Stack


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """A stack with project 1, whose batches have five rows."""
    stack = new_stack(batch_max_records=5, load_attempts=1).make_topics()
    create_project(stack.ledger, "shop")
    return stack


def _run(stack: Stack, instance: dg.DagsterInstance, **config: Any) -> ExecuteInProcessResult:
    job = definitions(stack.settings).resolve_job_def("import_files")
    return job.execute_in_process(
        run_config={"ops": {"import_them": {"config": config}}},
        instance=instance,
        raise_on_error=False,
    )


def test_files_are_imported_and_told(
    stack: Stack, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Rows name the run, each batch is a materialization, the balance is in the output."""
    files = [
        write_lines(tmp_path / "one", lines_of(range(7))),
        write_lines(tmp_path / "two", lines_of(range(7, 9))),
    ]
    result = _run(stack, instance, files=files, project="1", date="2024-02-29")
    assert result.success
    assert stack.rows("SELECT DISTINCT _run_id FROM {database}.events") == [(result.run_id,)]
    records = instance.fetch_materializations(dg.AssetKey("events"), limit=9).records
    assert {each.partition_key for each in records} == {FIRST_ARRIVAL_DATE.isoformat()}
    assert len(records) == 3
    [output] = [event for event in result.all_events if event.is_successful_output]
    document: Any = output.step_output_data.metadata["imported"].value
    assert [(each["ok"], each["done"]) for each in document] == [(7, True), (2, True)]
    again = _run(stack, instance, files=files, project="1")
    assert again.success
    assert len(instance.fetch_materializations(dg.AssetKey("events"), limit=9).records) == 3
    assert len(stack.batches()) == 3


def test_a_wrong_file_is_thrown_away(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """By its name; once something is loaded the run fails with a sentence, and is not retried."""
    stack = new_stack(batch_max_records=5, hold_over_records=1).make_topics()
    create_project(stack.ledger, "shop")
    file = write_lines(tmp_path / "wrong", [b"{}"] * 6)
    assert not _run(stack, instance, files=[file], project="1").success
    [held] = stack.batches()
    result = _discard(stack, instance, held.topic)
    assert result.success
    [output] = [event for event in result.all_events if event.is_successful_output]
    told = output.step_output_data.metadata
    assert told["import"].value == held.topic
    assert told["rows"].value == 5
    assert [batch.state for batch in stack.batches()] == [State.SUPERSEDED]
    file = write_lines(tmp_path / "wrong", lines_of(range(3)))
    assert _run(stack, instance, files=[file], project="1").success
    result = _discard(stack, instance, stack.batches()[-1].topic)
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "what is loaded stays" in str(failure.step_failure_data.user_failure_data)


def _discard(stack: Stack, instance: dg.DagsterInstance, name: str) -> ExecuteInProcessResult:
    job = definitions(stack.settings).resolve_job_def("discard_import")
    return job.execute_in_process(
        run_config={"ops": {"discard_it": {"config": {"name": name}}}},
        instance=instance,
        raise_on_error=False,
    )


def told_of(instance: dg.DagsterInstance) -> list[Any]:
    """The batches that materializations of `events` tell of."""
    records = instance.fetch_materializations(dg.AssetKey("events"), limit=9).records
    found = [each.asset_materialization for each in records]
    return [each.metadata["batch_id"].value for each in found if each is not None]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"files": ["one"], "project": "1", "date": "soon"}, "'soon' is no date"),
        ({"files": ["one"], "project": "9"}, "no project has the id 9"),
        ({"files": ["/nothing/there"], "project": "1"}, "is not there"),
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
    assert stack.batches() == []


def test_a_run_that_is_ended_is_gone_on_with_by_the_next(
    stack: Stack, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is terminated in the UI; what it had staged is told by who loads it."""
    file = write_lines(tmp_path / "one", lines_of(range(12)))
    left = [0]

    def end(point: str) -> None:
        if point == "after-plan":
            left[0] += 1
            if left[0] == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("assets.pipeline.imports.failpoint", end)
        assert not _run(stack, instance, files=[file], project="1").success
    assert [batch.state for batch in stack.batches()] == [State.COMMITTED, State.PLANNED]
    assert told_of(instance) == [stack.batches()[0].batch_id]
    with monkeypatch.context() as patch:
        patch.setattr("orchestration.import_job._tell", lambda *given: None)  # as after a kill
        assert _run(stack, instance, files=[file], project="1").success
    assert len(told_of(instance)) == 1
    assert _run(stack, instance, files=[file], project="1").success
    assert sorted(told_of(instance)) == sorted(batch.batch_id for batch in stack.batches())
    assert len(told_of(instance)) == 3
    assert stack.rows("SELECT count(), uniqExact(_offset) FROM {database}.events") == [(12, 12)]


def test_why_an_import_failed_is_not_hidden_by_a_storage_that_is_away(
    stack: Stack, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dates that cannot be kept red just then are left to the checks."""
    monkeypatch.setattr(waiting_dates, "waiting_for_a_person", storage_is_away)
    result = _run(stack, instance, files=["/nothing/there"], project="1")
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "is not there" in str(failure.step_failure_data.user_failure_data)
    told = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert [text for text in told if "a date may be green until the next checks" in text]
