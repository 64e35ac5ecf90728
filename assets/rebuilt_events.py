"""`rebuilt_events`: a date of `events` made anew from the staged files that the lake has."""

from datetime import date

import dagster as dg

from assets.backfill import backfill_asset, rebuilt_metadata
from assets.pipeline.rebuild import rebuild
from assets.report import told_failures
from orchestration.resources import Pipeline
from orchestration.settings import Settings


def rebuilt_events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @backfill_asset(
        settings,
        "rebuilt_events",
        {"clickhouse"},
        description=(
            "A date of the table `events`, made anew from its staged files: filled beside it, "
            "proved, and swapped in at once, while micro-batches go on. Materialize a date, or "
            "backfill a range of them; `tidemark backfill back` brings back what was replaced."
        ),
    )
    def asset(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.MaterializeResult[None]:
        with told_failures(context):
            worker = pipeline.worker(context)
            done = rebuild(worker, date.fromisoformat(context.partition_key))
        return dg.MaterializeResult(metadata=rebuilt_metadata(worker, done))

    return asset
