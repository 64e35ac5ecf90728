"""`dead_letters`: the records that were rejected, with their bytes and the reason."""

from __future__ import annotations

import dagster as dg

from assets.kafka_events import GROUP
from assets.metadata import clickhouse_schema, dead_letter_metadata
from assets.pipeline.batch import Kind
from assets.pipeline.worker import load_dead_letters
from assets.report import report, told_failures, unreported
from orchestration.partitions import arrival_dates
from orchestration.resources import Pipeline
from orchestration.retries import pool_of, retry_policy
from orchestration.settings import Settings


def dead_letters(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a topic."""

    @dg.asset(
        name="dead_letters",
        # After events, because a batch's dead letters are loaded once its events are.
        deps=["staged_events", "events"],
        partitions_def=arrival_dates,
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        group_name=GROUP,
        kinds={"clickhouse"},
        pool=pool_of(settings.topic),
        retry_policy=retry_policy(settings),
        description=(
            "Rejected records in ClickHouse: raw bytes, headers, the reason, and where in Kafka "
            "the record stands. A bad record never fails a batch: it ends up here and the "
            "balance of its batch still closes."
        ),
        metadata={
            "dagster/table_name": f"{settings.clickhouse_database}.dead_letters",
            "dagster/column_schema": clickhouse_schema("dead_letters"),
        },
    )
    def asset(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.MaterializeResult[None]:
        with told_failures(context):
            worker = pipeline.worker(context)
            done = load_dead_letters(worker)
            new = {batch.batch_id for batch in done}
            late = unreported(context, worker, [])
            batches = [b for b in late if b.batch_id not in new and b.dead_letters_loaded_at] + done
            return report(context, worker, Kind.DEAD_LETTERS, batches, dead_letter_metadata)

    return asset
