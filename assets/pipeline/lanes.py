"""Lanes: how far each is planned, and the next batch of them.

    topic's ends ─see_watermark─▶ watermark ─plan_next─▶ the next batch, planned in the ledger
                                     ▲
            check_ledger, open_lanes ┘  first: is this the ledger that belongs to ClickHouse?

Invariant: a lane moves on in the transaction that stores the batch, and never moves back.
"""

from __future__ import annotations

from collections.abc import Collection

from assets.pipeline import plan
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.circuit import LOAD
from assets.pipeline.clock import StageClock
from assets.pipeline.codes import Remedy
from assets.pipeline.errors import (
    ClickHouseAway,
    ClickHouseRefused,
    LedgerBehind,
    LoadingPaused,
    TopicMissing,
)
from assets.pipeline.failpoints import failpoint
from assets.pipeline.mirror import mirrored_ends
from assets.pipeline.topic import Topic
from assets.pipeline.version import TRANSFORM_VERSION
from assets.pipeline.worker import Worker
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger.connection import now_us
from orchestration.ledger.leases import Lease

ASSUMED_RECORD_BYTES = 1_500.0
"""Bytes of value a record, until there are batches to reckon from."""


def see_watermark(worker: Worker, topic: Topic) -> plan.Watermark | None:
    """The topic's ends; None for one beside the main topic that nobody has made."""
    try:
        return plan.see_watermark(topic)
    except TopicMissing as error:
        if topic.name == worker.settings.topic:
            raise
        worker.say(f"{error}: there is nothing of it to read")
        return None


def check_ledger(worker: Worker, lease: Lease, topic: Topic, watermark: plan.Watermark) -> None:
    """Raise LedgerBehind when ClickHouse knows of batches that the ledger has no lanes for.

    Planned from such a ledger, a restored or an empty one, everything would be loaded again
    under other names. ClickHouse may be away: what is staged now it is asked about at the load.
    """
    identity = watermark.identity
    try:
        worker.circuit(lease, LOAD, Kind.EVENTS).check()
        mirrored = mirrored_ends(
            worker.clickhouse, worker.settings.clickhouse_database, identity.topic_id
        )
    except (ClickHouseAway, ClickHouseRefused, LoadingPaused) as error:
        if error.remedy not in (Remedy.WAIT, Remedy.ALONE, Remedy.REPAIR):
            raise
        worker.say(f"the ledger is not compared with ClickHouse's mirror of it: {error}")
        return
    planned = ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id)
    ahead = {
        partition: end for partition, end in mirrored.items() if end > planned.get(partition, 0)
    }
    if ahead:
        partition, end = next(iter(sorted(ahead.items())))
        raise LedgerBehind(
            f"the ledger has planned partition {partition} of {topic.name} up to "
            f"{planned.get(partition, 0):,}, but ClickHouse holds batches up to {end:,}: this is "
            "an older or another ledger, and from it those records would be loaded twice. Point "
            "TIDEMARK_LEDGER_URL to the right one, or use another TIDEMARK_CLICKHOUSE_DATABASE"
        )


def open_lanes(worker: Worker, lease: Lease, topic: Topic, watermark: plan.Watermark) -> None:
    """Take a topic that the ledger sees for the first time from where it begins now."""
    identity = watermark.identity
    if ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id):
        return
    lows = topic.lows(watermark.highs)
    ledger_batches.open_lanes(
        worker.ledger, lease, topic.name, identity.cluster_id, identity.topic_id, lows
    )
    gone = {partition: low for partition, low in lows.items() if low}
    if gone:
        worker.say(
            f"topic {topic.name} is taken up from where it begins now; what was before is "
            "no longer in Kafka: "
            + ", ".join(f"{partition}:[0,{low})" for partition, low in sorted(gone.items()))
        )


def unread(worker: Worker, topic: Topic, watermark: plan.Watermark) -> dict[int, int]:
    """Per partition that has any, how many offsets below the watermark are in no batch yet.

    Raises LogTruncated as planning does.
    """
    identity = watermark.identity
    ends = ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id)
    starts = plan.unplanned_starts(topic, watermark, ends)
    return {partition: watermark.highs[partition] - start for partition, start in starts.items()}


def plan_next(
    worker: Worker,
    lease: Lease,
    topic: Topic,
    watermark: plan.Watermark,
    lanes: Collection[int] | None = None,
) -> Batch | None:
    """Plan the next batch of a topic, below its watermark; None when all is planned.

    With `lanes`, of these partitions alone.
    """
    identity = watermark.identity
    clock = StageClock()
    with clock.stage("plan"):
        cut = plan.cut_next(
            topic,
            watermark,
            ledger_batches.planned_ends(worker.ledger, identity.cluster_id, identity.topic_id),
            most_offsets(worker, topic.name),
            lanes=lanes,
        )
        if cut is None:
            return None
        batch = plan.make_batch(
            cut,
            identity,
            topic=topic.name,
            run_id=worker.run_id,
            code_version=TRANSFORM_VERSION,
            planned_at=now_us(),
        )
        failpoint("before-plan")
        ledger_batches.record_plan(worker.ledger, lease, batch)
    ledger_batches.add_timings(worker.ledger, batch.batch_id, clock.timings())
    worker.say(
        f"batch {batch.batch_id}: planned {batch.offsets:,} offsets of {batch.topic}, "
        f"{batch.arrival_date}, " + " ".join(map(str, batch.ranges))
    )
    failpoint("after-plan")
    return batch


def most_offsets(worker: Worker, topic: str) -> int:
    """How many offsets a batch may span, by records and by bytes."""
    settings = worker.settings
    average = ledger_batches.average_record_bytes(worker.ledger, topic)
    by_bytes = settings.batch_max_bytes / (average or ASSUMED_RECORD_BYTES)
    return max(1, min(settings.batch_max_records, int(by_bytes)))
