"""The job of the cadence: one micro-batch over all assets and topics, and the checks after it."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.checks import MICRO_BATCH
from orchestration.resources import TOPIC_TAG
from orchestration.settings import Settings

MAX_RUNTIME_S = 3600
"""A run beyond this is stopped by Dagster's monitor; the next one takes up where it stood."""

_PRIORITY = 10  # before backfills, whose runs have 0


def micro_batch(settings: Settings) -> UnresolvedAssetJobDefinition:
    """The job, for a deployment's topics."""
    return dg.define_asset_job(
        MICRO_BATCH,
        selection=dg.AssetSelection.assets("staged_events", "events", "dead_letters"),
        executor_def=dg.in_process_executor,
        description=(
            "Finishes what was begun, then drains each topic up to its end as it stands when its "
            "turn comes (historical events last, for a minute at most): plan, read, validate, "
            "enrich, stage, load, prove, commit. A run may carry several batches, of several "
            "topics and arrival dates, or none."
        ),
        tags={
            TOPIC_TAG: settings.topic,
            "dagster/max_runtime": str(MAX_RUNTIME_S),
            "dagster/priority": str(_PRIORITY),
        },
    )
