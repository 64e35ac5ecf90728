"""Report: what the worker did for an asset, as Dagster's materializations and failures.

One materialization for each batch, under the batch's own arrival date, whichever date the run was
started for. The newest batch of the run's own date is what the asset function returns, so that
the date gets no bare entry beside it; a date to which the run brought nothing says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import dagster as dg
from sqlalchemy.exc import OperationalError

from assets.metadata import Metadata, no_batch_metadata
from assets.pipeline.batch import WAITING, Batch, Kind
from assets.pipeline.codes import Remedy
from assets.pipeline.errors import BatchError, TransientError
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import batches_of_date, batches_of_run
from orchestration.partitions import partition_of
from orchestration.waiting_words import waits_texts

PASSING = (TransientError, OperationalError)
"""Errors after which the same step may go well a little later."""

_LOOKED_AT = 200  # materializations at once
_CLOCKS_APART_S = 3600.0
_NAMED = 50  # batches


@dataclass(frozen=True)
class Sheet:
    """What differs between the assets: which rows they hold, and how a batch is told of there."""

    kind: Kind
    is_done: Callable[[Batch], bool]  # whether the asset has what it is to have of the batch
    describe: Callable[[Worker, Batch], Metadata]


def report(
    context: dg.AssetExecutionContext,
    worker: Worker,
    sheet: Sheet,
    done: Sequence[Batch],
    before: Sequence[Batch] = (),
) -> dg.MaterializeResult[None]:
    """Report what was done now, and what was done before and never told.

    `before` are the unfinished batches that were found at the start. Gives what the asset
    function returns.
    """
    batches = [*_untold(context, worker, sheet, done, before), *done]
    own = [batch for batch in batches if partition_of(batch.arrival_date) == context.partition_key]
    for batch in batches:
        if not own or batch is not own[-1]:
            context.log_event(
                dg.AssetMaterialization(
                    context.asset_key,
                    partition=partition_of(batch.arrival_date),
                    metadata=sheet.describe(worker, batch),
                )
            )
    if own:
        return dg.MaterializeResult(metadata=sheet.describe(worker, own[-1]))
    return dg.MaterializeResult(metadata=_nothing_new(context, worker, sheet))


def _nothing_new(context: dg.AssetExecutionContext, worker: Worker, sheet: Sheet) -> Metadata:
    day = date.fromisoformat(context.partition_key)
    of_date = batches_of_date(worker.ledger, day, *worker.settings.topics)
    there = [batch for batch in of_date if sheet.is_done(batch)]
    note = f"nothing for {day}: the ledger has no batch of that date here"
    if there:
        note = (
            f"nothing new for {day}: its {len(there):,} batches are there already and stay as "
            "they are; the checks prove them again"
            if len(there) > 1
            else f"nothing new for {day}: its one batch is there already and stays as it is; the "
            "checks prove it again"
        )
        names = " ".join(batch.batch_id for batch in there[:_NAMED])
        context.log.info(f"{note}: {names}{' …' if len(there) > _NAMED else ''}")
    else:
        context.log.info(note)
    waiting = [each for each in of_date if each.state in WAITING and not sheet.is_done(each)]
    if waiting:  # the date will be red (waiting_dates.py)
        note += f"; {waits_texts(waiting)}"
    return no_batch_metadata(sheet.kind, there, note)


def _untold(
    context: dg.AssetExecutionContext,
    worker: Worker,
    sheet: Sheet,
    done: Sequence[Batch],
    before: Sequence[Batch],
) -> list[Batch]:
    """Batches done earlier that no materialization of this asset tells of.

    A process that died between its work and its report leaves such a batch behind: it is among
    the unfinished, or it was planned by the run that this one tries again.
    """
    family = {context.run.root_run_id, context.run.parent_run_id}
    if context.retry_number:
        family.add(context.run.run_id)
    candidates = list(before)
    for run_id in family:
        if run_id is not None:
            candidates += batches_of_run(worker.ledger, run_id)
    told = {batch.batch_id for batch in done}
    found = [each for each in candidates if each.batch_id not in told and sheet.is_done(each)]
    return not_told(context.instance, context.asset_key, found)


def not_told(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, batches: Sequence[Batch]
) -> list[Batch]:
    """Those of these batches that no materialization of an asset tells of, the oldest plan first.

    Looks through what was told of their partitions since the first of them was planned.
    """
    untold = {batch.batch_id: batch for batch in batches}
    if not untold:
        return []
    wanted = dg.AssetRecordsFilter(
        asset_key,
        asset_partitions=sorted({partition_of(batch.arrival_date) for batch in untold.values()}),
        after_timestamp=min(batch.planned_at for batch in batches) / 1e6 - _CLOCKS_APART_S,
    )
    cursor = None
    while untold:
        page = instance.fetch_materializations(wanted, limit=_LOOKED_AT, cursor=cursor)
        for record in page.records:
            materialization = record.asset_materialization
            if materialization is not None and "batch_id" in materialization.metadata:
                untold.pop(str(materialization.metadata["batch_id"].value), None)
        if not page.has_more:
            break
        cursor = page.cursor
    return sorted(untold.values(), key=lambda batch: (batch.planned_at, batch.batch_id))


@contextmanager
def told_failures(
    context: dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
) -> Iterator[None]:
    """Turn the pipeline's errors into failures that Dagster tries again, or does not."""
    try:
        yield
    except PASSING as error:
        again = not isinstance(error, BatchError) or error.remedy is not Remedy.REPAIR
        raise _failure(context, error, again=again) from error
    except BatchError as error:
        raise _failure(context, error, again=False) from error


def _failure(
    context: dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    error: Exception,
    *,
    again: bool,
) -> dg.Failure:
    return dg.Failure(
        description="; ".join([str(error), *getattr(error, "__notes__", ())]),
        metadata={
            "error": type(error).__name__,
            "try_in_this_run": context.retry_number + 1,
            "worth_another_try": again,
        },
        allow_retries=again,
    )
