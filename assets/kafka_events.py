"""`kafka/<topic>`: the topics that the capture API writes, observed by each micro-batch.

Nothing here makes them: they are the graph's sources. An observation tells where each lane ends,
up to where it is planned, and how long the oldest record of the newest batch had waited.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from assets.metadata import appended_between, public_address, utc
from assets.pipeline.batch import Batch
from assets.pipeline.commit import group_id
from assets.pipeline.worker import Worker
from orchestration.backlog import TopicBacklog, look
from orchestration.settings import Settings

GROUP = "ingest"


def kafka_key(topic: str) -> dg.AssetKey:
    """The key of a topic's asset."""
    return dg.AssetKey(["kafka", topic])


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
                "capture_api": dg.MetadataValue.url(public_address(settings.capture_address)),
                "consumer_group": f"{group_id(topic)} (for lag tools; nothing plans from it)",
            },
        )
        for topic, what in holds.items()
    ]


def observe(context: dg.AssetExecutionContext, worker: Worker, staged: Sequence[Batch]) -> None:
    """Log how each topic stands now that these batches are staged."""
    for backlog in look(worker.topics.values(), worker.ledger).topics:
        if not backlog.is_missing:
            own = [batch for batch in staged if batch.topic == backlog.topic]
            context.log_event(_observation(worker, backlog, own))


def _observation(
    worker: Worker, backlog: TopicBacklog, staged: Sequence[Batch]
) -> dg.AssetObservation:
    newest = staged[-1] if staged else None
    between = appended_between(worker.lake, newest) if newest else None
    lag = 0.0
    if newest is not None and newest.staged_at is not None and between is not None:
        lag = (utc(newest.staged_at) - between[0]).total_seconds()
    return dg.AssetObservation(
        kafka_key(backlog.topic),
        metadata={
            "end_offsets": sum(lane.end for lane in backlog.lanes),
            "read_up_to": sum(lane.planned_end for lane in backlog.lanes),
            "unread": backlog.unread,
            "records_read": sum(batch.offsets for batch in staged),
            "batches": len(staged),
            "lag_seconds": round(lag, 3),
            **({"trouble": str(backlog.trouble)} if backlog.trouble else {}),
            "lanes": dg.MetadataValue.table(
                [
                    dg.TableRecord(
                        {
                            "partition": lane.partition,
                            "read_up_to": lane.planned_end,
                            "end": lane.end,
                            "unread": lane.unread,
                        }
                    )
                    for lane in backlog.lanes
                ],
                schema=dg.TableSchema(
                    [dg.TableColumn(n, "int") for n in ("partition", "read_up_to", "end", "unread")]
                ),
            ),
        },
    )
