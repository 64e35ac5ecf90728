"""What the assets have in common that make dates of `events` anew, by hand or by a backfill.

No micro-batch carries them. One run a date, so that each stands by itself: cancelled, tried again,
resumed from what it had filled. How many go at once is up to the pool, which all of them share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.metadata import Metadata
from assets.pipeline.rebuild_preview import Preview, preview_text
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import waiting_for_a_person
from orchestration.ledger.rebuilds import Rebuild, RebuildState
from orchestration.partitions import arrival_dates
from orchestration.retries import retry_policy
from orchestration.settings import Settings
from orchestration.waiting_words import waits_texts

GROUP = "backfill"
"""Not that of the micro-batch: Materialize all, there, is to rebuild nothing."""


def backfill_asset(
    settings: Settings,
    name: str,
    kinds: set[str],
    description: str,
    *,
    output_required: bool = True,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`dg.asset` for one of them. Where no output is required a run may only look."""
    return dg.asset(
        name=name,
        deps=["staged_events", "events"],
        partitions_def=arrival_dates,
        group_name=GROUP,
        kinds=kinds,
        pool=pool_of_rebuilds(settings),
        retry_policy=retry_policy(settings),
        output_required=output_required,
        description=description,
    )


def pool_of_rebuilds(settings: Settings) -> str:
    """The pool in which one date at a time is made anew, unless its limit says otherwise."""
    return f"rebuild_{settings.topic}"


def log_preview(
    context: dg.AssetExecutionContext, name: str, seen: Preview, metadata: Metadata
) -> None:
    """Say what a run would do, in the same words as the command, and observe it."""
    lines = preview_text(seen)
    for line in lines:
        context.log.info(line)
    context.log_event(
        dg.AssetObservation(
            name,
            description="; ".join(line.strip() for line in lines),
            partition=context.partition_key,
            metadata=metadata,
        )
    )


def rebuilt_metadata(worker: Worker, done: Rebuild) -> dict[str, str | int | float]:
    """What was swapped in, how to bring back what was there before, and what is not in it.

    A batch that waits for a person comes to the date with the micro-batch that loads it: the date
    of `events` is red until then (waiting_dates.py), and nothing is to be rebuilt for it.
    """
    found: dict[str, str | int | float]
    if done.state is RebuildState.CANCELLED:
        found = {"note": f"nothing to rebuild: no batch of {done.arrival_date} is loaded"}
    else:
        found = {
            "dagster/partition_row_count": done.rows or 0,
            "batches": done.batches or 0,
            "seconds": round((done.moved_at - done.begun_at) / 1e6, 3),
            "bring_back": f"tidemark backfill back {done.arrival_date}",
        }
    if done.generation:
        found["generation"] = done.generation
    waiting = waiting_for_a_person(worker.ledger, *worker.settings.topics)
    missing = [
        batch
        for batch in waiting
        if batch.arrival_date == done.arrival_date and batch.loaded_at is None
    ]
    if missing:
        found["not_in_it"] = waits_texts(missing)
    return found
