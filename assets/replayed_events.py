"""`replayed_events`: a date's files that the lake has lost, from Kafka, and a rebuild from them.

Materialized by hand or backfill, like `rebuilt_events`, and in its pool. A run whose configuration
says `preview` materializes nothing: it observes what is lost, and what of it has expired.
"""

from collections.abc import Iterator
from datetime import date

import dagster as dg
from pydantic import Field

from assets.backfill import backfill_asset, log_preview, rebuilt_metadata
from assets.metadata import Metadata
from assets.pipeline.rebuild import rebuild
from assets.pipeline.rebuild_preview import preview, replay_text
from assets.pipeline.remaking import Asked
from assets.report import told_failures
from orchestration.ledger.rebuilds import RebuildState, Way
from orchestration.resources import Pipeline
from orchestration.settings import Settings

NAME = "replayed_events"


class ReplayConfig(dg.Config):
    """Whether to do it, or only to look; and of which files."""

    preview: bool = Field(
        default=False, description="Only say what is lost, and what of it has expired in Kafka."
    )
    all_files: bool = Field(default=False, description="Also of files that are whole.")


def replayed_events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @backfill_asset(
        settings,
        NAME,
        {"kafka", "parquet"},
        output_required=False,
        description=(
            "A date's records read again from Kafka, where the lake has lost their files, and the "
            "table `events` rebuilt from them, while micro-batches go on. What has expired keeps "
            "its rows. With `preview: true` in the run's configuration nothing is written: an "
            "observation says what is lost, and what of it Kafka still has."
        ),
    )
    def asset(
        context: dg.AssetExecutionContext,
        config: ReplayConfig,
        pipeline: dg.ResourceParam[Pipeline],
    ) -> Iterator[dg.MaterializeResult[None]]:
        day = date.fromisoformat(context.partition_key)
        asked = Asked(all_files=config.all_files)
        with told_failures(context):
            worker = pipeline.worker(context)
            if config.preview:
                seen = preview(worker, day, Way.REPLAY, all_files=config.all_files)
            else:
                done = rebuild(worker, day, Way.REPLAY, asked)
        if config.preview:
            lines = replay_text(seen.to_replay) or ["no file is lost"]
            metadata: Metadata = {
                "batches": dg.MetadataValue.int(len(seen.to_replay)),
                "expired": dg.MetadataValue.int(sum(not b.is_whole for b in seen.to_replay)),
                "found": dg.MetadataValue.md("\n".join(f"    {line}" for line in lines)),
            }
            log_preview(context, NAME, seen, metadata)
            return
        left = {"left_as_they_are": dg.MetadataValue.json(asked.left)} if asked.left else {}
        if done.state is RebuildState.CANCELLED:
            note = f"nothing to replay: nothing that Kafka has is missing in the lake of {day}"
            yield dg.MaterializeResult(metadata={"note": note, **left})
        else:
            yield dg.MaterializeResult(metadata={**rebuilt_metadata(worker, done), **left})

    return asset
