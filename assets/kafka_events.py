"""`capture_api` and `kafka/<topic>`: what it writes, observed by each micro-batch.

Nothing here makes them: they are the graph's sources. An observation tells where each lane ends,
up to where it is planned, how long the oldest record of the newest batch had waited, and since when
all is loaded: of that moment, when a run has staged what it found and has not loaded it yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets.metadata import appended_between
from assets.pipeline.batch import Batch
from assets.pipeline.commit import group_id
from assets.pipeline.errors import KafkaAway
from assets.pipeline.worker import Worker
from orchestration.addresses import public_address
from orchestration.settings import Settings
from orchestration.standing import Completeness, Standing, TopicStanding, complete_of, stand
from orchestration.times import utc

GROUP = "ingest"


def kafka_key(topic: str) -> dg.AssetKey:
    """The key of a topic's asset."""
    return dg.AssetKey(["kafka", topic])


def capture_api(settings: Settings) -> dg.AssetSpec:
    """Where events come from, as an external asset: the graph's beginning."""
    address = public_address(settings.capture_address)
    return dg.AssetSpec(
        "capture_api",
        description=(
            "The HTTP edge that SDKs post events to. It answers 200 only after every record of a "
            "request is acknowledged by all of Kafka's in-sync replicas. `tidemark explain` shows "
            "what became of a request."
        ),
        group_name=GROUP,
        kinds={"python"},
        metadata={
            "address": dg.MetadataValue.url(address),
            "metrics": dg.MetadataValue.url(f"{address}/metrics"),
            "ready": dg.MetadataValue.url(f"{address}/_readiness"),
        },
    )


def kafka_events(settings: Settings) -> list[dg.AssetSpec]:
    """The topics as external assets."""
    holds = {
        settings.topic: "Events",
        settings.overflow_topic: "Events of keys that are too hot for one partition",
        settings.historical_topic: "Events of historical migrations, read when nothing else waits",
    }
    return [
        dg.AssetSpec(
            kafka_key(topic),
            deps=["capture_api"],
            description=(
                f"{what}, as the capture API had them acknowledged by Kafka: one record each, as "
                "JSON. A micro-batch reads them by offset and leaves them in place; how long they "
                "stay is up to the topic's retention. Observed by every micro-batch: the lag is "
                "here."
            ),
            group_name=GROUP,
            kinds={"kafka"},
            metadata={
                "topic": topic,
                "bootstrap_servers": settings.bootstrap_servers,
                "consumer_group": f"{group_id(topic)} (for lag tools; nothing plans from it)",
            },
        )
        for topic, what in holds.items()
    ]


def observe(context: dg.AssetExecutionContext, worker: Worker, staged: Sequence[Batch]) -> None:
    """Log how each topic stands now that these batches are staged."""
    try:
        standing = stand(worker.topics.values(), worker.ledger, worker.settings.kafka_client)
    except KafkaAway as error:  # no reason to leave unloaded what is staged
        context.log.warning(f"how the topics stand is not observed: {error}")
        return
    for topic in standing.topics:
        if not topic.is_missing:
            own = [batch for batch in staged if batch.topic == topic.topic]
            context.log_event(_observation(worker, topic, own, standing))


def _observation(
    worker: Worker, topic: TopicStanding, staged: Sequence[Batch], standing: Standing
) -> dg.AssetObservation:
    newest = staged[-1] if staged else None
    between = appended_between(worker.lake, newest) if newest else None
    lag = 0.0
    if newest is not None and newest.staged_at is not None and between is not None:
        lag = (utc(newest.staged_at) - between[0]).total_seconds()
    return dg.AssetObservation(
        kafka_key(topic.topic),
        metadata={
            "end_offsets": sum(lane.end for lane in topic.lanes),
            "read_up_to": sum(lane.planned_end for lane in topic.lanes),
            "unread": topic.not_planned,
            "records_read": sum(batch.offsets for batch in staged),
            "batches": len(staged),
            "lag_seconds": round(lag, 3),
            **_standing_metadata(topic, standing),
            **({"trouble": str(topic.trouble)} if topic.trouble else {}),
            "lanes": dg.MetadataValue.table(
                [
                    dg.TableRecord(
                        {
                            "partition": lane.partition,
                            "read_up_to": lane.planned_end,
                            "end": lane.end,
                            "unread": lane.not_planned,
                        }
                    )
                    for lane in topic.lanes
                ],
                schema=dg.TableSchema(
                    [dg.TableColumn(n, "int") for n in ("partition", "read_up_to", "end", "unread")]
                ),
            ),
        },
    )


def _standing_metadata(topic: TopicStanding, standing: Standing) -> dict[str, Any]:
    """Numbers of the moment: what is not loaded, how old it is, and when Kafka forgets it."""
    found: dict[str, Any] = {}
    if topic.trouble is None:
        found["not_loaded"] = topic.not_loaded
        if topic.not_loaded_bytes is not None:
            found["not_loaded_bytes"] = topic.not_loaded_bytes
        oldest = topic.oldest
        waited = 0.0 if oldest is None else _seconds(topic.seen_at - (oldest.oldest_at or 0))
        found["oldest_not_loaded_seconds"] = waited
        if topic.expires_at is not None:
            found["unread_expires_seconds"] = _seconds(topic.expires_at - topic.seen_at)
    return {
        **found,
        **_completeness("complete", complete_of(topic), standing),
        **_completeness("all_topics_complete", standing.complete, standing),
    }


def _completeness(name: str, complete: Completeness, standing: Standing) -> dict[str, Any]:
    if complete.before is None:
        return {f"{name}_held_by": complete.held_by}
    return {
        f"{name}_before": dg.MetadataValue.timestamp(complete.before / 1e6),
        f"{name}_age_seconds": _seconds(standing.seen_at - complete.before),
    }


def _seconds(microseconds: int) -> float:
    return round(max(0, microseconds) / 1e6, 3)
