"""`staged_events`: ranges of the topics, judged and enriched, as one Parquet file a batch."""

from collections.abc import Mapping

import dagster as dg

from assets.kafka_events import GROUP, kafka_key, observe
from assets.metadata import arrow_schema, staged_metadata
from assets.pipeline.batch import Kind, State
from assets.pipeline.columns import EVENTS
from assets.pipeline.errors import BatchError, KafkaRefusesUs
from assets.pipeline.staging import stage_batches
from assets.report import Sheet, report, told_failures
from orchestration.addresses import public_address
from orchestration.partitions import arrival_dates
from orchestration.resources import Pipeline
from orchestration.retries import pool_of, retry_policy
from orchestration.settings import Settings

SHEET = Sheet(Kind.EVENTS, lambda batch: batch.staged is not None, staged_metadata)


def _with_stagers(
    result: dg.MaterializeResult[None], stagers: Mapping[str, int]
) -> dg.MaterializeResult[None]:
    """The run's own entry says how many processes staged for it, and how large they got in sum."""
    told = {"stagers": len(stagers), "stagers_peak_bytes": sum(stagers.values())}
    return result._replace(metadata={**(result.metadata or {}), **told})


def staged_events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @dg.asset(
        name="staged_events",
        deps=[kafka_key(topic) for topic in settings.topics_by_urgency],
        partitions_def=arrival_dates,
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
            before = worker.unfinished()
            pipeline.tag_run(context, before)
            # What is wrong with a lane or a batch must not keep the others from being loaded: the
            # checks `lanes` and `balance` are red for it.
            held: list[BatchError] = []
            staged = stage_batches(worker, held, loads_early=True)
            for trouble in held:
                context.log.error(str(trouble))
                if isinstance(trouble, KafkaRefusesUs):
                    pipeline.refusals.append(trouble)
            for batch in staged:
                if batch.state is State.HELD:
                    context.log.error(f"batch {batch.batch_id} is held: {batch.note}")
            pipeline.tag_run(context, [*before, *staged])
            observe(context, worker, staged)
            result = report(context, worker, SHEET, staged, before)
            return result if not worker.stagers else _with_stagers(result, worker.stagers)

    return asset
