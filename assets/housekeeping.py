"""`housekeeping`: once a day, what has served its time is let go, and reported."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from assets.report import told_failures
from orchestration.housekeeping.parts import most_parts
from orchestration.housekeeping.replaced import let_go_of_replaced
from orchestration.housekeeping.runs import let_go_of_runs
from orchestration.resources import Pipeline
from orchestration.retries import retry_policy
from orchestration.settings import Settings

HOUSEKEEPING = "housekeeping"
JOB = "daily_housekeeping"
GROUP = "upkeep"
_RUNS_LIMIT_S = 900.0


def housekeeping(settings: Settings) -> dg.AssetsDefinition:
    """The asset, and its check of ClickHouse's parts."""

    @dg.asset(
        name=HOUSEKEEPING,
        group_name=GROUP,
        retry_policy=retry_policy(settings),
        check_specs=[
            dg.AssetCheckSpec(
                "parts",
                asset=HOUSEKEEPING,
                description="No partition has half as many parts as slow down its inserts.",
            )
        ],
        description=(
            "Once a day: Dagster's runs older than TIDEMARK_KEEP_RUNS_DAYS go, their partitions "
            "stay materialized; what rebuilds have replaced goes after "
            "TIDEMARK_KEEP_REPLACED_DAYS; ClickHouse's parts are counted. Staged files that count, "
            "batches and dead letters are never deleted."
        ),
    )
    def asset(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> Iterator[dg.MaterializeResult[None]]:
        runs = 0
        if settings.keep_runs_days:
            before = datetime.now(UTC) - timedelta(days=settings.keep_runs_days)
            runs = let_go_of_runs(context.instance, before, _RUNS_LIMIT_S)
        context.log.info(f"{runs:,} runs older than {settings.keep_runs_days} days deleted")
        with told_failures(context):
            worker = pipeline.worker(context)
            dates = let_go_of_replaced(worker, settings.keep_replaced_days)
            parts = most_parts(worker)
        named = ", ".join(map(str, dates)) or "none"
        context.log.info(f"replaced dates let go: {named}")
        yield dg.MaterializeResult(
            metadata={
                "runs_deleted": runs,
                "replaced_dates_dropped": len(dates),
                "parts_most": parts.parts,
                "parts_limit": parts.limit,
                "rows": parts.rows,
                "bytes": parts.bytes,
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="parts",
                    passed=not parts.are_too_many,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=(
                        f"{parts.table} of {parts.partition or 'no date'} has {parts.parts:,} "
                        f"parts; inserts are slowed down from {parts.limit:,}"
                        + (
                            ": a longer cadence, or more merges (background_pool_size), is needed"
                            if parts.are_too_many
                            else ""
                        )
                    ),
                    metadata={"parts": parts.parts, "limit": parts.limit},
                )
            ],
        )

    return asset


def housekeeping_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Its job at its time, running unless somebody stops it."""
    return dg.ScheduleDefinition(
        name="housekeeping_schedule",
        job=dg.define_asset_job(
            JOB,
            selection=dg.AssetSelection.assets(HOUSEKEEPING),
            executor_def=dg.in_process_executor,
            description="Lets go of what has served its time, and reports it.",
        ),
        cron_schedule=settings.housekeeping_cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Housekeeping at TIDEMARK_HOUSEKEEPING_CRON.",
    )
