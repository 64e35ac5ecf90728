"""The job of the cadence, a micro-batch over all assets and topics with the checks that prove it;
and the job of the other checks, with the schedule that runs them whether there are batches or not.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.checks import MICRO_BATCH
from assets.queryable import QUERYABLE
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


def checks_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """The checks of how all stands, running unless somebody stops it. They take no lease."""
    return dg.ScheduleDefinition(
        name="checks_schedule",
        job=dg.define_asset_job(
            "checks",
            selection=dg.AssetSelection.checks_for_assets(QUERYABLE),
            executor_def=dg.in_process_executor,
            description=(
                "How complete and how fresh all is, how much is rejected, and whether the tables "
                "are as this version makes them. It reads, and changes nothing."
            ),
            tags={TOPIC_TAG: settings.topic},
        ),
        cron_schedule=settings.checks_cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="The checks that no micro-batch has, at TIDEMARK_CHECKS_CRON.",
    )
