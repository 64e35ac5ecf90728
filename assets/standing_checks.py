"""The checks `completeness` and `freshness`: how far loading has come, and how far behind it is.

Both come from one look at Kafka and the ledger.
ClickHouse is not asked: what it holds of what is loaded is up to the checks that prove it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg

from assets.answers import answer, listed
from assets.metadata import table_of
from assets.pipeline.errors import KafkaAway
from assets.pipeline.worker import Worker
from assets.queryable import QUERYABLE
from orchestration.completeness import what_stands_still
from orchestration.freshness import Oldest, oldest_of
from orchestration.ledger.batches import waiting_for_a_person
from orchestration.standing import Standing, complete_of, stand
from orchestration.times import span_text, utc_text

COMPLETENESS = dg.AssetCheckSpec(
    "completeness",
    asset=QUERYABLE,
    description=(
        "The watermark: everything received before it is queryable or accounted for. Red when "
        "nothing moves it on by itself: a batch waits for a person, a topic cannot be read on, "
        "Kafka has forgotten records, or it cannot be told."
    ),
)

FRESHNESS = dg.AssetCheckSpec(
    "freshness",
    asset=QUERYABLE,
    description=(
        "The oldest record that is to be loaded has waited no longer than until the next tick of "
        "its topic's cadence and TIDEMARK_ALARM_OLDEST_SECONDS after it. Historical events wait "
        "for fresh ones by design: their age is shown and not judged."
    ),
)

_TOLD = 3
_SHOWN = 20


def standing_results(
    worker: Worker, selected: set[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckResult]:
    """The selected ones of both."""
    specs = [spec for spec in (COMPLETENESS, FRESHNESS) if spec.key in selected]
    if not specs:
        return
    try:
        seen = stand(worker.topics.values(), worker.ledger, worker.settings.kafka_client)
    except KafkaAway as error:
        for spec in specs:
            yield answer(spec, False, f"cannot be told now: {error}")
        return
    for spec in specs:
        yield (_completeness if spec is COMPLETENESS else _freshness)(worker, seen)


def _completeness(worker: Worker, standing: Standing) -> dg.AssetCheckResult:
    waiting = waiting_for_a_person(worker.ledger, *worker.settings.topics_by_urgency)
    still = what_stands_still(standing, waiting)
    complete = standing.complete
    if complete.before is None:
        told = "it cannot be told before when everything is queryable"
    else:
        at_least = "at least " if complete.is_bound else ""
        told = (
            f"everything received {at_least}before {utc_text(complete.before)} "
            f"({span_text(standing.seen_at - complete.before)} ago) is queryable or accounted for"
        )
        told += f"; held by {complete.held_by}" if complete.held_by else ""
    if still:
        told += f". It stands still: {'; '.join(still[:_TOLD])}"
    elif complete.held_by:
        told += ", which moves on by itself"
    metadata: dict[str, Any] = {
        "not_loaded": sum(topic.not_loaded for topic in standing.topics),
        "waiting_for_a_person": len(waiting),
        "topics": table_of(
            [
                (topic.topic, _when(own.before), topic.not_loaded, own.held_by)
                for topic in standing.topics
                if not topic.is_missing
                for own in [complete_of(topic)]
            ],
            ("topic", "string"),
            ("complete_before", "string"),
            ("not_loaded", "int"),
            ("held_by", "string"),
        ),
    }
    if complete.before is not None:
        metadata["complete_before"] = dg.MetadataValue.timestamp(complete.before / 1e6)
        metadata["complete_age_seconds"] = _seconds(standing.seen_at - complete.before)
    if still:
        metadata["stands_still"] = listed(still, _SHOWN)
    return answer(COMPLETENESS, not still, told, metadata)


def _freshness(worker: Worker, standing: Standing) -> dg.AssetCheckResult:
    settings = worker.settings
    oldest = [
        found
        for topic in standing.topics
        if (found := oldest_of(settings, topic, past_waiting=True)) is not None
    ]
    judged = [one for one in oldest if one.topic != settings.historical_topic]
    # A topic that cannot be looked at now may have anything.
    unknown = [t for t in standing.topics if t.trouble is not None and not t.is_missing]
    late = [one for one in judged if one.is_late]
    if late:
        told = "; ".join(map(_late, late))
    elif unknown:
        told = f"cannot be told of {unknown[0].topic}: {unknown[0].trouble}"
    elif judged:
        one = max(judged, key=lambda each: each.waited)
        limit = "any" if one.may_wait is None else span_text(one.may_wait)
        told = f"the oldest record has waited {span_text(one.waited)}, it may for {limit}"
    else:
        told = "nothing that is to be loaded waits"
    metadata: dict[str, Any] = {
        "oldest_not_loaded_seconds": _seconds(max((one.waited for one in judged), default=0)),
    }
    if oldest:
        metadata["oldest"] = table_of(
            [
                (
                    *(one.topic, one.partition, utc_text(one.at)),
                    span_text(one.waited),
                    "any" if one.may_wait is None or one not in judged else span_text(one.may_wait),
                    settings.cadence_of(one.topic).text,
                )
                for one in oldest
            ],
            ("topic", "string"),
            ("partition", "int"),
            ("appended", "string"),
            ("waited", "string"),
            ("may_wait", "string"),
            ("cadence", "string"),
        )
    return answer(FRESHNESS, not late and not unknown, told, metadata)


def _late(one: Oldest) -> str:
    return (
        f"the oldest record of topic {one.topic} that is to be loaded has waited "
        f"{span_text(one.waited)} (partition {one.partition}), it may for "
        f"{span_text(one.may_wait or 0)}: `tidemark status` says what it waits for. If runs are "
        "green and it grows, the worker is too slow: give it more cores, or see in Automation "
        "whether ticks are skipped"
    )


def _when(at: int | None) -> str:
    return "not known" if at is None else utc_text(at)


def _seconds(microseconds: int) -> float:
    return round(max(0, microseconds) / 1e6, 3)
