"""The trigger's decision: when a micro-batch starts, for which date, and why not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from assets.pipeline.errors import LogTruncated, TransientError
from assets.pipeline.staging import stage_batches
from orchestration.backlog import Backlog
from orchestration.cadence_triggers import Lookout, decide
from orchestration.definitions import definitions
from orchestration.ledger.tables import lanes
from orchestration.lost_runs import WORKER_TAG, worker_tag
from orchestration.resources import TOPICS_TAG
from orchestration.settings import Settings
from tests.records import Sent, value_of
from tests.stack import Stack

TODAY = datetime.now(UTC).date().isoformat()


def _a_run(
    instance: dg.DagsterInstance,
    settings: Settings,
    status: dg.DagsterRunStatus,
    **tags: str,
) -> dg.DagsterRun:
    job = definitions(settings).resolve_job_def("micro_batch")
    run = instance.create_run_for_job(job, tags={"dagster/partition": TODAY, **tags})
    if status is dg.DagsterRunStatus.FAILURE:
        instance.report_run_failed(run)
        return run
    instance.handle_run_event(
        run.run_id,
        dg.DagsterEvent("PIPELINE_START", job_name=run.job_name, message="begun"),
    )
    assert status is dg.DagsterRunStatus.STARTED
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def _reason(decision: dg.RunRequest | dg.SkipReason) -> str:
    assert isinstance(decision, dg.SkipReason), decision
    return decision.skip_message or ""


class _Away(Lookout):
    """A lookout from which something cannot be seen."""

    tags: dict[str, str] = {}  # type: ignore[assignment]  # noqa: RUF012

    def __init__(self, error: Exception) -> None:
        self._error = error

    def backlog(self) -> Backlog:
        """Fails."""
        raise self._error


class _Unasked(_Away):
    """A lookout that nobody may use."""

    def __init__(self) -> None:
        super().__init__(AssertionError("asked Kafka for nothing"))


def test_nothing_unread_starts_nothing(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """An empty topic, and one that is loaded to its end, are skipped with that reason."""
    stack = new_stack().make_topic(2)
    lookout = Lookout(stack.settings)
    assert _reason(decide(instance, lookout)) == "nothing in Kafka waits to be loaded"
    stack.send_numbers(range(10), 2)
    assert isinstance(decide(instance, lookout), dg.RunRequest)
    stack.run()
    assert _reason(decide(instance, lookout)) == "nothing in Kafka waits to be loaded"


def test_the_oldest_unread_record_gives_the_date(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """The run's partition is the arrival date of the oldest record that no batch holds."""
    stack = new_stack().make_topic(2, **{"message.timestamp.type": "CreateTime"})
    old = datetime.now(UTC) - timedelta(days=2)
    stack.send(
        Sent(value_of(1), 0, int(datetime.now(UTC).timestamp() * 1000)),
        Sent(value_of(2), 1, int(old.timestamp() * 1000)),
    )
    decision = decide(instance, Lookout(stack.settings))
    assert isinstance(decision, dg.RunRequest)
    assert decision.partition_key == old.date().isoformat()


def test_an_unfinished_batch_is_reason_enough(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """What a killed run left behind is carried on, though Kafka has nothing new."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    stage_batches(stack.worker())
    decision = decide(instance, Lookout(stack.settings))
    assert isinstance(decision, dg.RunRequest)
    assert decision.partition_key == TODAY


def test_a_run_at_work_is_left_alone(
    settings: Callable[..., Settings], instance: dg.DagsterInstance
) -> None:
    """While a run is under way no other starts, and Kafka is not even asked."""
    run = _a_run(instance, settings(), dg.DagsterRunStatus.STARTED)
    instance.add_run_tags(run.run_id, worker_tag(run.run_id))
    assert run.run_id[:8] in _reason(decide(instance, _Unasked()))
    still = instance.get_run_by_id(run.run_id)
    assert still is not None
    assert still.status is dg.DagsterRunStatus.STARTED


def test_a_run_whose_process_is_gone_does_not_block(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """A run that died with its machine is marked as failed, and the next one starts."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    run = _a_run(instance, stack.settings, dg.DagsterRunStatus.STARTED)
    program = """
import sys
from orchestration.lost_runs import worker_tag
print(*worker_tag(sys.argv[1]).values())
"""
    tag = subprocess.check_output([sys.executable, "-c", program, run.run_id], text=True).strip()
    instance.add_run_tags(run.run_id, {WORKER_TAG: tag})
    later = datetime.now(UTC) + timedelta(hours=1)  # past the pause after a failure
    assert isinstance(decide(instance, Lookout(stack.settings), later), dg.RunRequest)
    lost = instance.get_run_by_id(run.run_id)
    assert lost is not None
    assert lost.status is dg.DagsterRunStatus.FAILURE


def test_a_retry_is_not_lost_because_its_parent_was(
    settings: Callable[..., Settings], instance: dg.DagsterInstance
) -> None:
    """A run inherits the tags of the one it tries again; they say nothing of its own process."""
    run = _a_run(instance, settings(), dg.DagsterRunStatus.STARTED)
    gone = worker_tag("the-parent")[WORKER_TAG].replace(f":{os.getpid()}:", ":1:")
    instance.add_run_tags(run.run_id, {WORKER_TAG: gone})
    assert run.run_id[:8] in _reason(decide(instance, _Unasked()))


def test_failures_in_a_row_make_a_growing_pause(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """What fails again and again is tried ever more rarely, and the tick says which run to see."""
    stack = new_stack().make_topic()
    stack.send_numbers(range(10))
    lookout = Lookout(stack.settings)
    now = datetime.now(UTC)
    pauses = []
    for _ in range(3):
        run = _a_run(instance, stack.settings, dg.DagsterRunStatus.FAILURE)
        reason = _reason(decide(instance, lookout, now))
        assert "10 unread records wait" in reason
        assert run.run_id[:8] in reason
        pauses.append(
            next(
                seconds
                for seconds in range(0, 4000, 5)
                if isinstance(
                    decide(instance, lookout, datetime.now(UTC) + timedelta(seconds=seconds)),
                    dg.RunRequest,
                )
            )
        )
    assert pauses == sorted(set(pauses))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TransientError("Kafka did not answer: timed out"), "Kafka did not answer"),
        (OperationalError("SELECT", {}, Exception("disk is gone")), "disk is gone"),
    ],
)
def test_what_passes_by_itself_is_a_skipped_tick(
    instance: dg.DagsterInstance, error: Exception, words: str
) -> None:
    """Kafka or the ledger away skips the tick in their words; no tick goes red for it."""
    assert words in _reason(decide(instance, _Away(error)))


def test_lost_records_fail_the_tick(instance: dg.DagsterInstance) -> None:
    """What needs a person is not skipped: the tick fails and shows."""
    with pytest.raises(LogTruncated):
        decide(instance, _Away(LogTruncated("Kafka has lost records")))


@pytest.mark.parametrize("cadence", ["5s", "1m"])
def test_the_trigger_of_either_kind_decides_so(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance, cadence: str
) -> None:
    """Schedule and sensor come to the same decision from the same state."""
    stack = new_stack(cadence=cadence).make_topic()
    repository = definitions(stack.settings).get_repository_def()

    def tick() -> tuple[list[str | None], str | None]:
        sensor = next((s for s in repository.sensor_defs if s.name != "alarms"), None)
        if sensor is not None:
            data = sensor.evaluate_tick(
                dg.build_sensor_context(instance, repository_def=repository)
            )
            return [request.partition_key for request in data.run_requests or []], data.skip_message
        schedule = repository.get_schedule_def("micro_batch_schedule")
        ticked = schedule.evaluate_tick(
            dg.build_schedule_context(instance, repository_def=repository)
        )
        requests = [request.partition_key for request in ticked.run_requests or []]
        return requests, ticked.skip_message

    assert tick() == ([], "nothing in Kafka waits to be loaded")
    stack.send_numbers(range(3))
    assert tick() == ([TODAY], None)


def test_records_beside_the_main_topic_start_a_run(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """What waits in any topic starts a micro-batch, of the oldest date over all of them."""
    stack = new_stack().make_topics()
    lookout = Lookout(stack.settings)
    assert _reason(decide(instance, lookout)) == "nothing in Kafka waits to be loaded"
    stack.send(value_of(1), topic=stack.settings.historical_topic)
    assert isinstance(decide(instance, lookout), dg.RunRequest)


def test_a_troubled_topic_fails_the_tick_only_when_nothing_else_waits(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Lost records of one topic do not keep the others from being loaded."""
    stack = new_stack().make_topics()
    overflow = stack.settings.overflow_topic
    stack.send(value_of(1), topic=overflow)
    stack.run()
    with stack.ledger.begin() as connection:
        connection.execute(lanes.update().where(lanes.c.topic == overflow).values(planned_end=9))
    lookout = Lookout(stack.settings)
    with pytest.raises(LogTruncated, match=f"{overflow} ends at 1, but is planned up to 9"):
        decide(instance, lookout)
    stack.send(value_of(2))
    assert isinstance(decide(instance, lookout), dg.RunRequest)


def test_a_topic_with_a_cadence_of_its_own_is_taken_by_its_own_runs(
    new_stack: Callable[..., Stack], instance: dg.DagsterInstance
) -> None:
    """Its trigger looks at it alone, and waits for no run of the others; theirs leave it alone."""
    stack = new_stack(cadence_historical="1h").make_topics()
    main, overflow, historical = stack.settings.topics_by_urgency
    others = Lookout(stack.settings, [main, overflow])
    own = Lookout(stack.settings, [historical])
    stack.send(value_of(1), topic=historical)
    assert _reason(decide(instance, others)) == "nothing in Kafka waits to be loaded"
    asked = decide(instance, own)
    assert isinstance(asked, dg.RunRequest)
    assert asked.tags[TOPICS_TAG] == historical

    stack.send(value_of(2))
    request = decide(instance, others)
    assert isinstance(request, dg.RunRequest)
    assert request.tags[TOPICS_TAG] == f"{main} {overflow}"
    run = _a_run(instance, stack.settings, dg.DagsterRunStatus.STARTED, **request.tags)
    assert run.run_id[:8] in _reason(decide(instance, others))
    assert isinstance(decide(instance, own), dg.RunRequest)  # queued behind it by the pool

    for each in (request, asked):
        job = definitions(stack.settings).resolve_job_def("micro_batch")
        ran = job.execute_in_process(instance=instance, partition_key=TODAY, tags=dict(each.tags))
        assert ran.success
        taken = each.tags[TOPICS_TAG].split()
        assert {b.topic for b in stack.batches() if b.run_id == ran.run_id} == {taken[0]}
