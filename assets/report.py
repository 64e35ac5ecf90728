"""Report: what the worker did for an asset, as Dagster's materializations and failures.

One materialization for each batch, under the batch's own arrival date, whichever date the run was
started for. The newest batch of the run's own date is what the asset function returns, so that
the date gets no bare entry beside it; a date to which the run brought nothing says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date

import dagster as dg
from sqlalchemy.exc import OperationalError

from assets.metadata import Metadata, no_batch_metadata
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.errors import BatchError, LeaseHeld, LeaseLost, TransientError
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import PlanConflict, batches_of_date, batches_of_run
from orchestration.partitions import partition_of

PASSING = (TransientError, LeaseHeld, LeaseLost, PlanConflict, OperationalError)
"""Errors after which the same step may go well a little later."""

_LOOKED_BACK = 200


def report(
    context: dg.AssetExecutionContext,
    worker: Worker,
    kind: Kind,
    batches: Sequence[Batch],
    describe: Callable[[Worker, Batch], Metadata],
) -> dg.MaterializeResult[None]:
    """Report batches; gives what the asset function returns."""
    own = [batch for batch in batches if partition_of(batch.arrival_date) == context.partition_key]
    for batch in batches:
        if not own or batch is not own[-1]:
            context.log_event(
                dg.AssetMaterialization(
                    context.asset_key,
                    partition=partition_of(batch.arrival_date),
                    metadata=describe(worker, batch),
                )
            )
    if own:
        return dg.MaterializeResult(metadata=describe(worker, own[-1]))

    day = date.fromisoformat(context.partition_key)
    there = batches_of_date(worker.ledger, worker.settings.topic, day)
    found = no_batch_metadata(worker, there, kind)
    context.log.info(
        f"nothing new for {day}: its {len(there):,} batches with "
        f"{found['dagster/partition_row_count'].value:,} rows are there already and stay as they "
        "are; the checks prove them again"
        if there
        else f"nothing for {day}: the ledger has no batch of that date"
    )
    return dg.MaterializeResult(metadata=found)


def unreported(
    context: dg.AssetExecutionContext, worker: Worker, candidates: Sequence[Batch]
) -> list[Batch]:
    """Those of the batches that no materialization of this asset tells of.

    A process that died between its work and its report leaves such a batch behind. Besides the
    candidates, what the runs planned that this one is a retry of is looked at.
    """
    family = {context.run.root_run_id, context.run.parent_run_id} - {None}
    if context.retry_number:
        family.add(context.run.run_id)
    known = {batch.batch_id: batch for batch in candidates}
    for run_id in family:
        assert run_id is not None
        known |= {batch.batch_id: batch for batch in batches_of_run(worker.ledger, run_id)}
    if not known:
        return []
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(
            context.asset_key,
            asset_partitions=sorted({partition_of(batch.arrival_date) for batch in known.values()}),
        ),
        limit=_LOOKED_BACK,
    ).records
    for record in records:
        materialization = record.asset_materialization
        if materialization is not None and "batch_id" in materialization.metadata:
            known.pop(str(materialization.metadata["batch_id"].value), None)
    return sorted(known.values(), key=lambda batch: (batch.planned_at, batch.batch_id))


@contextmanager
def told_failures(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
) -> Iterator[None]:
    """Turn the pipeline's errors into failures that Dagster tries again, or does not."""
    try:
        yield
    except PASSING as error:
        raise _failure(context, error, again=True) from error
    except BatchError as error:
        raise _failure(context, error, again=False) from error


def _failure(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    error: Exception,
    *,
    again: bool,
) -> dg.Failure:
    return dg.Failure(
        description=str(error),
        metadata={
            "error": type(error).__name__,
            "try_in_this_run": context.retry_number + 1,
            "worth_another_try": again,
        },
        allow_retries=again,
    )
