"""`reenriched_events`: a date's staged files made again with today's code, and rebuilt from them.

Materialized by hand or backfill, like `rebuilt_events`, and in its pool. A run whose configuration
says `preview` materializes nothing: it observes what would change.
"""

from collections.abc import Iterator
from datetime import date

import dagster as dg
from pydantic import Field

from assets.backfill import backfill_asset, log_preview, rebuilt_metadata
from assets.metadata import Metadata
from assets.pipeline.rebuild import rebuild
from assets.pipeline.rebuild_preview import Preview, preview
from assets.report import told_failures
from orchestration.ledger.rebuilds import RebuildState, Way
from orchestration.resources import Pipeline
from orchestration.settings import Settings

NAME = "reenriched_events"


class ReenrichConfig(dg.Config):
    """Whether to do it, or only to look."""

    preview: bool = Field(
        default=False, description="Only say what would change, column by column."
    )


def reenriched_events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @backfill_asset(
        settings,
        NAME,
        {"clickhouse", "parquet"},
        output_required=False,
        description=(
            "A date's staged files made again with today's code, from the inputs they hold, and "
            "the table `events` rebuilt from them, while micro-batches go on. With `preview: true` "
            "in the run's configuration nothing is written: an observation says what would "
            "change, column by column. `tidemark backfill back` brings back what was replaced."
        ),
    )
    def asset(
        context: dg.AssetExecutionContext,
        config: ReenrichConfig,
        pipeline: dg.ResourceParam[Pipeline],
    ) -> Iterator[dg.MaterializeResult[None]]:
        day = date.fromisoformat(context.partition_key)
        with told_failures(context):
            worker = pipeline.worker(context)
            if config.preview:
                seen = preview(worker, day, Way.REENRICH)
            else:
                done = rebuild(worker, day, Way.REENRICH)
        if config.preview:
            log_preview(context, NAME, seen, _preview_metadata(seen))
        elif done.state is RebuildState.CANCELLED:
            yield dg.MaterializeResult(
                metadata={"note": f"nothing to change: {day} is what today's code makes of it"}
            )
        else:
            yield dg.MaterializeResult(metadata=rebuilt_metadata(worker, done))

    return asset


def _preview_metadata(seen: Preview) -> Metadata:
    assert seen.changes is not None
    records = [
        dg.TableRecord(
            {
                "column": name,
                "rows": column.rows,
                "uuid": example.uuid,
                "now": example.before,
                "then": example.after,
            }
        )
        for name, column in seen.changes.columns.items()
        for example in column.examples
    ]
    found: Metadata = {
        "rows": dg.MetadataValue.int(seen.changes.rows),
        "batches": dg.MetadataValue.int(seen.batches),
        "files_that_cannot_be_read": dg.MetadataValue.int(len(seen.damaged)),
        "columns_that_change": dg.MetadataValue.json(
            {name: column.rows for name, column in seen.changes.columns.items()}
        ),
        "new_columns": dg.MetadataValue.json(sorted(seen.changes.added)),
        "columns_left_out": dg.MetadataValue.json(sorted(seen.changes.removed)),
    }
    if records:
        found["examples"] = dg.MetadataValue.table(records)
    return found
