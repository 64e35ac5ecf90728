"""Conditions: what is wrong now, by name, each with a text that says what to do.

    ledger ──▶ batches that wait for a person, failures that last, proofs that do not hold
    Kafka ───▶ records that wait too long, too many of them, or that Kafka is about to forget
    Dagster ─▶ micro-batches that fail, or do not come

A name says what is wrong with what, `held/<batch>`, so that the same trouble is the same alarm
whatever its text says by then. What cannot be judged now, because Kafka is away or ClickHouse's
proofs are not made, is neither wrong nor over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from sqlalchemy import Engine

from assets.checks import MICRO_BATCH
from assets.pipeline.errors import KafkaAway
from assets.pipeline.lake import Lake
from assets.pipeline.room import why_no_room
from assets.pipeline.topic import Topic
from orchestration.freshness import oldest_of
from orchestration.ledger.audits import audit_summary
from orchestration.ledger.backoffs import backoffs_now
from orchestration.ledger.batches import newest_batches, unfinished_batches, waiting_for_a_person
from orchestration.ledger.connection import now_us
from orchestration.settings import Settings
from orchestration.standing import Standing, TopicStanding, stand
from orchestration.tellers import told_of_waiting
from orchestration.times import span_text, utc_text
from orchestration.waiting_words import waits_text

OF_KAFKA = ("lag/", "oldest/", "retention/", "lost/", "lanes/", "no_batch/")
"""How the names begin of what cannot be judged without Kafka."""

_RUNS_LOOKED_AT = 50


@dataclass(frozen=True)
class Seen:
    """What is wrong now, a text by name, and how the names begin that could not be judged."""

    wrong: dict[str, str]
    not_judged: tuple[str, ...] = ()

    def is_judged(self, name: str) -> bool:
        """Whether that name's absence says that it is over."""
        return not name.startswith(self.not_judged)


def look(
    settings: Settings,
    ledger: Engine,
    topics: dict[str, Topic],
    instance: dg.DagsterInstance,
    trouble: str = "",
) -> Seen:
    """What is wrong now. `trouble` is what is wrong with the settings that are written."""
    wrong = {"settings": trouble} if trouble else {}
    wrong |= dict(_of_ledger(settings, ledger))
    wrong |= dict(_of_runs(instance))
    try:
        standing = stand(topics.values(), ledger, settings.kafka_client)
    except KafkaAway as error:
        text = f"{error}. Nothing is read until it is back; the capture API answers 503 or spools"
        return Seen(wrong | {"kafka": text}, OF_KAFKA)
    in_trouble = [topic.topic for topic in standing.topics if topic.trouble is not None]
    return Seen(
        wrong | dict(of_standing(settings, ledger, standing)),
        tuple(f"{kind}{name}" for name in in_trouble for kind in OF_KAFKA if kind != "lanes/"),
    )


def _of_ledger(settings: Settings, ledger: Engine) -> Iterator[tuple[str, str]]:
    for batch in waiting_for_a_person(ledger, *settings.topics):
        yield f"{batch.state.value}/{batch.batch_id}", waits_text(batch)
    patience = settings.alarm_failing_seconds * 1e6
    ours = {batch.batch_id for batch in unfinished_batches(ledger, *settings.topics)}
    for name, backoff in backoffs_now(ledger).items():
        kind, of, what = name.split("/", 2)
        # Another deployment may share the ledger.
        is_ours = of == settings.topic if kind == "table" else of in ours
        if is_ours and now_us() - backoff.since >= patience:
            subject = f"the table {what}" if kind == "table" else f"batch {of} at {what}"
            yield (
                f"failing/{name}",
                f"{subject} fails since {utc_text(backoff.since)}, {backoff.failures:,} times in a "
                f"row: {backoff.error_text}. It is tried again by itself; mend the cause, see "
                "`tidemark status`",
            )
    if full := why_no_room(settings, ledger, Lake(settings.lake)):
        yield "room", f"no more is staged: {full}"
    for audit in audit_summary(ledger, *settings.topics).failed:
        yield (
            f"audit/{audit.batch_id}",
            f"batch {audit.batch_id} was loaded and does not hold any more: {audit.detail}. "
            "`tidemark reconcile` names what differs and how to mend it",
        )


def of_standing(
    settings: Settings, ledger: Engine, standing: Standing
) -> Iterator[tuple[str, str]]:
    """What is wrong with how far the topics have come."""
    for topic in standing.topics:
        if topic.is_missing:
            continue
        if topic.trouble is not None:
            yield f"lanes/{topic.topic}", f"topic {topic.topic}: {topic.trouble}"
            continue
        cadence = settings.cadence_of(topic.topic)
        tick_s = cadence.gap_seconds(datetime.now(UTC))
        yield from _of_topic(settings, topic)
        unread = [lane.unread_at for lane in topic.lanes if lane.unread_at is not None]
        if not (topic.not_planned and unread):
            continue
        newest = [batch.planned_at for batch in newest_batches(ledger, topic.topic, 1)]
        quiet_since = max([*newest, min(unread)])
        if topic.seen_at - quiet_since >= settings.alarm_missed_ticks * max(tick_s, 1.0) * 1e6:
            yield (
                f"no_batch/{topic.topic}",
                f"records of topic {topic.topic} wait in Kafka and no batch of it was planned "
                f"since {utc_text(quiet_since)}, over {settings.alarm_missed_ticks} ticks of the "
                f"cadence {cadence.text}: see in Dagster's Automation whether the trigger is "
                "stopped or why it skips, and whether a run hangs",
            )


def _of_topic(settings: Settings, topic: TopicStanding) -> Iterator[tuple[str, str]]:
    name = topic.topic
    oldest = oldest_of(settings, topic)
    if oldest is not None and oldest.is_late:
        yield (
            f"oldest/{name}",
            f"the oldest record of topic {name} that is not loaded has waited "
            f"{span_text(oldest.waited)} (partition {oldest.partition}): `tidemark status` says "
            "what it waits for",
        )
    if settings.alarm_lag_records and topic.not_loaded > settings.alarm_lag_records:
        yield (
            f"lag/{name}",
            f"{topic.not_loaded:,} records of topic {name} are not loaded, the limit is "
            f"{settings.alarm_lag_records:,}: if it grows, give the worker more cores, a larger "
            "TIDEMARK_BATCH_MAX_RECORDS or a shorter cadence",
        )
    if settings.alarm_retention_seconds and topic.expires_at is not None:
        left = topic.expires_at - topic.seen_at
        near = settings.alarm_retention_seconds * 1e6
        if topic.retention.ms is not None:
            near = min(near, topic.retention.ms * 1e3 / 2)
        if left < near:
            yield (
                f"retention/{name}",
                f"Kafka forgets unread records of topic {name} in {span_text(max(0, left))}: raise "
                "retention.ms or retention.bytes of the topic now, then see `tidemark status` for "
                "what reading waits for",
            )
    if topic.lost:
        yield (
            f"lost/{name}",
            f"Kafka's retention has taken {topic.lost:,} records of topic {name} before they were "
            "read: `tidemark gaps` shows them once they are planned",
        )


def _of_runs(instance: dg.DagsterInstance) -> Iterator[tuple[str, str]]:
    """Micro-batches that failed since the last one that did not; runs at work say nothing yet.

    One that failed only to tell of waiting batches went well, and these are alarms of their own.
    """
    failed: list[dg.DagsterRun] = []
    for run in instance.get_runs(dg.RunsFilter(job_name=MICRO_BATCH), limit=_RUNS_LOOKED_AT):
        if run.status is dg.DagsterRunStatus.FAILURE and not told_of_waiting(run):
            failed.append(run)
        elif run.is_finished:
            break
    if failed:
        many = f"the last {len(failed):,} micro-batches" if len(failed) > 1 else "a micro-batch"
        yield (
            "runs",
            f"{many} failed, the newest is run {failed[0].run_id[:8]}: its page in Dagster says "
            "why. Nothing is lost: the next tick goes on from where its batches stand",
        )
