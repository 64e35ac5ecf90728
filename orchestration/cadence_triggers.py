"""The triggers: each starts a micro-batch at its cadence, when there is something for it to do.

There is one for the main topic and all that go with it, and one for each topic beside it that has a
cadence of its own. A cadence under a minute makes it a sensor, from a minute on a schedule; both
ask `decide`.
A tick that starts nothing says why, in the UI's list of ticks:

    nothing to do                       → skipped
    a run of these topics is at work    → skipped; one of other topics: queued behind it
    Kafka or the ledger is away         → skipped with their words: it passes by itself, and a red
                                          tick every few seconds would bury what does not
    the last runs failed                → skipped until a growing pause is over
    ClickHouse takes nothing            → runs go on staging; skipped only when nothing is to be
                                          staged, or there is no room, and no try is due
    Kafka's log is not what was planned → the tick fails: a person is needed; but where there is
                                          something else to do, that is done
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from assets.checks import MICRO_BATCH
from assets.pipeline.batch import State
from assets.pipeline.circuit import loading_paused, next_try_at
from assets.pipeline.errors import TransientError
from assets.pipeline.lake import Lake
from assets.pipeline.room import why_no_room
from assets.pipeline.topic import Topic, topics_of
from orchestration.backlog import Backlog, look
from orchestration.ledger.connection import open_ledger
from orchestration.lost_runs import fail_lost_runs
from orchestration.partitions import partition_of
from orchestration.resources import TOPICS_TAG
from orchestration.settings import Settings
from orchestration.tellers import told_of_waiting
from orchestration.times import utc

UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

_FIRST_PAUSE_S = 30.0
_LONGEST_PAUSE_S = 900.0
_FAILURES_COUNTED = 8
_LOST_RUNS_LOOKED_AT = 50


class Lookout:
    """Where a trigger looks. One for each code server: its connections stay open over ticks."""

    def __init__(self, settings: Settings, topics: Sequence[str] = ()) -> None:
        self._settings = settings
        self._names = topics or settings.topics_by_urgency

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its runs: which topics they take, unless it is all of them."""
        is_all = len(self._names) == len(self._settings.topics)
        return {} if is_all else {TOPICS_TAG: " ".join(self._names)}

    @cached_property
    def _topics(self) -> dict[str, Topic]:
        # The tick itself says that Kafka is away; the client would say so several times a second.
        client = {**self._settings.kafka_client, "log_level": "2"}
        return topics_of(client, self._names)

    @cached_property
    def _ledger(self) -> Engine:
        return open_ledger(self._settings.ledger)

    @cached_property
    def _lake(self) -> Lake:
        return Lake(self._settings.lake)

    def backlog(self) -> Backlog:
        """What waits now. Raises what keeps a topic from being read if nothing else waits."""
        backlog = look(self._topics.values(), self._ledger)
        if backlog.arrival_date is None:
            for trouble in backlog.troubles:
                raise trouble
        return backlog

    def wait(self, backlog: Backlog) -> str | None:
        """Why nothing of the backlog can be done now, though it is not nothing."""
        full = why_no_room(self._settings, self._ledger, self._lake)
        doable = [b for b in backlog.unfinished if full is None or b.state is not State.PLANNED]
        at = next_try_at(self._settings, self._ledger, doable)
        if (doable and at is None) or (backlog.unread and full is None):
            return None
        reasons = [str(full)] if full else []
        reasons += map(str, loading_paused(self._settings, self._ledger))
        if at is not None:
            reasons.append(f"next try at {utc(at):%H:%M:%S} UTC")
        return "; ".join(reasons)


def decide(
    instance: dg.DagsterInstance, lookout: Lookout, now: datetime | None = None
) -> dg.RunRequest | dg.SkipReason:
    """Whether a micro-batch is to start now, and for which date."""
    if (other := _run_under_way(instance, lookout.tags)) is not None:
        return dg.SkipReason(
            f"run {other.run_id[:8]} is {other.status.value.lower()}: it takes along what waits"
        )
    try:
        backlog = lookout.backlog()
    except TransientError as error:
        return dg.SkipReason(f"{error}; batches go on when it is back")
    except OperationalError as error:
        return dg.SkipReason(f"the ledger cannot be read ({error.orig}); see TIDEMARK_LEDGER_URL")
    if backlog.arrival_date is None:
        return dg.SkipReason("nothing in Kafka waits to be loaded")
    if (pause := _pause(instance, now or datetime.now(UTC))) is not None:
        return dg.SkipReason(f"{backlog} wait: {pause}")
    if (wait := lookout.wait(backlog)) is not None:
        return dg.SkipReason(f"{backlog} wait: {wait}")
    return dg.RunRequest(partition_key=partition_of(backlog.arrival_date), tags=lookout.tags)


Trigger = dg.ScheduleDefinition | dg.SensorDefinition
Decision = dg.RunRequest | dg.SkipReason


def cadence_triggers(
    settings: Settings, job: UnresolvedAssetJobDefinition, trouble: str = ""
) -> list[Trigger]:
    """A trigger for each cadence, running unless somebody stops it.

    `trouble` says which cadence is written and makes no sense: it is told with each.
    """
    apart = settings.own_cadences
    rest = [topic for topic in settings.topics_by_urgency if topic not in apart]
    triggers = [_trigger(settings, job, MICRO_BATCH, rest, trouble)]
    for topic in apart:
        name = topic.removeprefix(f"{settings.topic}_")
        triggers.append(_trigger(settings, job, f"{MICRO_BATCH}_{name}", [topic], trouble))
    return triggers


def _trigger(
    settings: Settings,
    job: UnresolvedAssetJobDefinition,
    name: str,
    topics: Sequence[str],
    trouble: str,
) -> Trigger:
    cadence = settings.cadence_of(topics[0])
    lookout = Lookout(settings, topics)
    description = (
        f"Starts a micro-batch of {', '.join(topics)} at the cadence {cadence.text}, when there "
        "are unread records or unfinished batches. `tidemark settings` has the cadences; Reload "
        "takes up a change in settings.env."
    )
    if trouble:
        description = f"NOT AS WRITTEN: {trouble}. {description}"

    def tick(context: dg.ScheduleEvaluationContext | dg.SensorEvaluationContext) -> Decision:
        decided = decide(context.instance, lookout)
        if trouble and isinstance(decided, dg.SkipReason):
            return dg.SkipReason(f"{decided.skip_message} ({trouble})")
        return decided

    if cadence.cron is not None:
        return dg.ScheduleDefinition(
            name=f"{name}_schedule",
            job=job,
            cron_schedule=cadence.cron,
            execution_timezone="UTC",
            execution_fn=tick,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )
    return dg.SensorDefinition(
        name=f"{name}_sensor",
        job=job,
        minimum_interval_seconds=cadence.interval_seconds,
        evaluation_fn=tick,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=description,
    )


def _run_under_way(instance: dg.DagsterInstance, tags: dict[str, str]) -> dg.DagsterRun | None:
    """A run that takes the same topics, or all of them. Others are queued behind by the pool."""
    # Any run of the topic may have been lost and hold its pool, not only those of this job.
    lost = fail_lost_runs(
        instance,
        instance.get_runs(
            dg.RunsFilter(
                statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING],
            ),
            limit=_LOST_RUNS_LOOKED_AT,
        ),
    )
    gone = {run.run_id for run in lost}
    runs = instance.get_runs(dg.RunsFilter(job_name=MICRO_BATCH, statuses=UNDER_WAY), limit=10)
    ours = ("", tags.get(TOPICS_TAG, ""))
    return next(
        (run for run in runs if run.run_id not in gone and run.tags.get(TOPICS_TAG, "") in ours),
        None,
    )


def _pause(instance: dg.DagsterInstance, now: datetime) -> str | None:
    """Why not to start yet though there is work: runs have failed, again and again."""
    records = instance.get_run_records(dg.RunsFilter(job_name=MICRO_BATCH), limit=_FAILURES_COUNTED)
    failures = 0
    for record in records:
        run = record.dagster_run
        if run.status is not dg.DagsterRunStatus.FAILURE or told_of_waiting(run):
            break
        failures += 1
    ended = records[0].end_time if records else None
    if not failures or ended is None:
        return None
    seconds = min(_FIRST_PAUSE_S * 2.0 ** (failures - 1), _LONGEST_PAUSE_S)
    until = datetime.fromtimestamp(ended, UTC) + timedelta(seconds=seconds)
    if until <= now:
        return None
    return (
        f"the last {failures} runs failed, see run {records[0].dagster_run.run_id[:8]}; "
        f"next try at {until:%H:%M:%S} UTC, or materialize by hand"
    )
