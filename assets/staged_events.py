"""`staged_events`: ranges of the topic, judged and enriched, as one Parquet file a batch."""

from __future__ import annotations

import dagster as dg

from assets.kafka_events import GROUP, kafka_key, observe
from assets.metadata import arrow_schema, public_address, staged_metadata
from assets.pipeline.batch import Kind, State
from assets.pipeline.columns import EVENTS
from assets.pipeline.worker import stage_batches
from assets.report import report, told_failures, unreported
from orchestration.ledger.batches import unfinished_batches
from orchestration.partitions import arrival_dates
from orchestration.resources import Pipeline
from orchestration.retries import pool_of, retry_policy
from orchestration.settings import Settings


def staged_events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a topic."""

    @dg.asset(
        name="staged_events",
        deps=[kafka_key(settings.topic)],
        partitions_def=arrival_dates,
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        group_name=GROUP,
        kinds={"parquet", "arrow"},
        pool=pool_of(settings.topic),
        retry_policy=retry_policy(settings),
        description=(
            "The lake: each batch of records as one immutable Parquet file under its arrival "
            "date. Every record has its verdict by now (ok, rejected, duplicate, tombstone), and "
            "rows carry all that enrichment used. From here on the file is the truth: ClickHouse "
            "can be loaded from it again, long after Kafka has forgotten the records."
        ),
        metadata={
            "dagster/uri": public_address(settings.lake),
            "dagster/column_schema": arrow_schema(EVENTS),
        },
    )
    def asset(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.MaterializeResult[None]:
        with told_failures(context):
            worker = pipeline.worker(context)
            before = unfinished_batches(worker.ledger, settings.topic)
            pipeline.name_batches(context, before)
            staged = stage_batches(worker)
            pipeline.name_batches(context, [*before, *staged])
            observe(context, worker, staged)
            new = {batch.batch_id for batch in staged}
            late = unreported(
                context, worker, [batch for batch in before if batch.state is not State.PLANNED]
            )
            batches = [b for b in late if b.batch_id not in new and b.staged] + staged
            return report(context, worker, Kind.EVENTS, batches, staged_metadata)

    return asset
