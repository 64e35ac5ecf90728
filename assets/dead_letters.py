"""`dead_letters`: the records that were rejected, with their bytes and the reason."""

import dagster as dg

from assets.kafka_events import GROUP
from assets.metadata import clickhouse_schema, dead_letter_metadata
from assets.pipeline.batch import Kind
from assets.pipeline.errors import BatchError
from assets.pipeline.loading import load_dead_letters
from assets.pipeline.tell_standing import tell_standing
from assets.report import Sheet, report, told_failures
from orchestration.partitions import arrival_dates
from orchestration.resources import Pipeline
from orchestration.retries import pool_of, retry_policy
from orchestration.settings import Settings

SHEET = Sheet(
    Kind.DEAD_LETTERS, lambda batch: batch.dead_letters_loaded_at is not None, dead_letter_metadata
)


def dead_letters(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @dg.asset(
        name="dead_letters",
        # After events, because a batch's dead letters are loaded once its events are.
        deps=["staged_events", "events"],
        partitions_def=arrival_dates,
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
            held: list[BatchError] = []
            done = load_dead_letters(worker, held)
            for trouble in held:
                context.log.error(str(trouble))
            tell_standing(worker)
            return report(context, worker, SHEET, done)

    return asset
