"""`events`: the table that analysts query, each batch loaded by one insert and proved."""

import dagster as dg

from assets.kafka_events import GROUP
from assets.metadata import clickhouse_schema, loaded_metadata
from assets.pipeline.batch import Kind
from assets.pipeline.errors import BatchError
from assets.pipeline.loading import load_batches
from assets.report import Sheet, report, told_failures
from orchestration.partitions import arrival_dates
from orchestration.resources import Pipeline
from orchestration.retries import pool_of, retry_policy
from orchestration.settings import Settings

SHEET = Sheet(Kind.EVENTS, lambda batch: batch.loaded_at is not None, loaded_metadata)


def events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @dg.asset(
        name="events",
        deps=["staged_events"],
        partitions_def=arrival_dates,
        group_name=GROUP,
        kinds={"clickhouse"},
        pool=pool_of(settings.topic),
        retry_policy=retry_policy(settings),
        description=(
            "Events in ClickHouse, one partition an arrival date. Each staged file goes in as one "
            "insert of one block, then ClickHouse is asked what it holds of the batch: it counts "
            "as loaded only when count and offset sums are those of the file. Every row names its "
            "record (`_topic`, `_partition`, `_offset`), its batch and the run that loaded it."
        ),
        metadata={
            "dagster/table_name": f"{settings.clickhouse_database}.events",
            "dagster/column_schema": clickhouse_schema("events"),
        },
    )
    def asset(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.MaterializeResult[None]:
        with told_failures(context):
            worker = pipeline.worker(context)
            before = worker.unfinished()
            # What is waited for is no reason to fail: the next runs go on staging meanwhile, and
            # the check `balance` is red for it.
            held: list[BatchError] = []
            loaded = load_batches(worker, held)
            for trouble in held:
                context.log.error(str(trouble))
            return report(context, worker, SHEET, loaded, before)

    return asset
