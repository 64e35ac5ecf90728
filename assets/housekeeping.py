"""`housekeeping`: once a day, what has served its time is let go, and reported."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from assets.metadata import Metadata
from assets.report import told_failures
from orchestration.housekeeping.keep_house import Report, keep_house
from orchestration.resources import Pipeline
from orchestration.retries import retry_policy
from orchestration.settings import Settings

HOUSEKEEPING = "housekeeping"
JOB = "daily_housekeeping"
GROUP = "upkeep"


class HousekeepingConfig(dg.Config):
    """What a run of it is told."""

    dry_run: bool = Field(default=False, description="Only say what would go, and what would stay.")


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
            "TIDEMARK_KEEP_REPLACED_DAYS. Staged files, dead letters, the index of duplicates and "
            "rows of the ledger go where TIDEMARK_KEEP_… says so, and only of dates that are "
            "proved to be loaded. ClickHouse's parts are counted."
        ),
    )
    def asset(
        context: dg.AssetExecutionContext,
        config: HousekeepingConfig,
        pipeline: dg.ResourceParam[Pipeline],
    ) -> Iterator[dg.MaterializeResult[None]]:
        with told_failures(context):
            worker = pipeline.worker(context)
            report = keep_house(worker, context.instance, dry_run=config.dry_run)
        parts = report.parts
        yield dg.MaterializeResult(
            metadata=_told(report),
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


_NAMES = {
    "files of the duplicate index": "index_files",
    "alarms and rebuilds that are over": "alarms_and_rebuilds",
}
"""Of what is too long for the UI's column of names, which runs into the values else."""


def _told(report: Report) -> Metadata:
    """The numbers under names of their own, so that the UI plots them, and a table of it all."""
    verb = "would_go" if report.dry_run else "let_go"
    told: Metadata = {}
    for tally in report.tallies:
        name = _NAMES.get(tally.what, tally.what.replace(" ", "_"))
        told[f"{name}_{verb}"] = dg.MetadataValue.int(tally.count)
        if tally.bytes:
            told[f"{name}_bytes_{verb}"] = dg.MetadataValue.int(tally.bytes)
    rows: list[dict[str, str | int | float | bool | None]] = [
        {
            "what": tally.what,
            verb: tally.count,
            "bytes": tally.bytes,
            "stayed": "; ".join(f"{n:,}: {why}" for why, n in tally.kept.items())
            + (" … and what there was no time for" if tally.cut_short else ""),
        }
        for tally in report.tallies
    ]
    types = {"what": "string", verb: "int", "bytes": "int", "stayed": "string"}
    told["report"] = dg.MetadataValue.table(
        [dg.TableRecord(row) for row in rows],
        schema=dg.TableSchema([dg.TableColumn(name, kind) for name, kind in types.items()]),
    )
    parts = report.parts
    for name in ("rows", "bytes"):
        told[name] = dg.MetadataValue.int(getattr(parts, name))
    return told | {
        "parts_most": dg.MetadataValue.int(parts.parts),
        "parts_limit": dg.MetadataValue.int(parts.limit),
    }


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
