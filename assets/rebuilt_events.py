"""`rebuilt_events`: a date of `events` made anew from the lake; materialized by hand or backfill.

No micro-batch carries it. One run a date, so that each stands by itself: cancelled, tried again,
resumed from what it had filled. How many go at once is up to the pool.
"""

from datetime import date

import dagster as dg

from assets.pipeline.rebuild import rebuild
from assets.report import told_failures
from orchestration.ledger.rebuilds import Rebuild
from orchestration.partitions import arrival_dates
from orchestration.resources import Pipeline
from orchestration.retries import retry_policy
from orchestration.settings import Settings

GROUP = "backfill"
"""Not that of the micro-batch: Materialize all, there, is to rebuild nothing."""


def rebuilt_events(settings: Settings) -> dg.AssetsDefinition:
    """The asset, for a deployment's topics."""

    @dg.asset(
        name="rebuilt_events",
        deps=["staged_events", "events"],
        partitions_def=arrival_dates,
        group_name=GROUP,
        kinds={"clickhouse"},
        pool=pool_of_rebuilds(settings),
        retry_policy=retry_policy(settings),
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
        return dg.MaterializeResult(metadata=rebuilt_metadata(done))

    return asset


def pool_of_rebuilds(settings: Settings) -> str:
    """The pool in which one date at a time is made anew, unless its limit says otherwise."""
    return f"rebuild_{settings.topic}"


def rebuilt_metadata(done: Rebuild) -> dict[str, str | int | float]:
    """What was swapped in, and how to bring back what was there before."""
    found: dict[str, str | int | float] = {
        "dagster/partition_row_count": done.rows or 0,
        "batches": done.batches or 0,
        "seconds": round((done.moved_at - done.begun_at) / 1e6, 3),
        "bring_back": f"tidemark backfill back {done.arrival_date}",
    }
    if done.generation:
        found["generation"] = done.generation
    return found
