"""Waiting dates: a date of which a batch waits for a person is red in Dagster, until none does.

A date has the colour of the newest that is said of it: green by a materialization, red by a plan
of a run that failed. A micro-batch plans a date and materializes it, whatever else of it waits. So

    a batch comes to wait   its run does all the rest, and fails at its end, once for each batch,
                            with what to do (tellers.py); it has planned the batch's date  ─▶ red
    later micro-batches     succeed; what they bring to the date is told as ever, and then the
                            date is planned once more by the run that failed              ─▶ red
    released, given back    the micro-batch that loads it materializes the date           ─▶ green
    given up, or loaded by a command    the next run of the checks materializes it        ─▶ green

Invariant: after the last step of a micro-batch the dates that it has brought something to, and
after the checks all dates, are red for an asset as long as a batch of theirs waits that the asset
lacks. A run that works on one date asks Dagster of no other; the checks ask what all of them are,
so what made one green in between (housekeeping, a run that was killed before its last step, another
job that could not say it) stands until they come round.

A plan takes the place of the older one of the same run (dagster_storage/plans.py): the log of the
run that failed ends with why, however long the batch waits, and the newest run of an asset is the
one that was at work last. Which batches a failed run has told of is in its tags: a run that is
killed before them leaves the telling to the next one, one that is killed after them has failed as
well. Where no batch waits, a micro-batch asks Dagster nothing of this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from assets import dead_letters, events, staged_events
from assets.metadata import no_batch_metadata
from assets.pipeline.batch import Batch, State
from assets.pipeline.failpoints import failpoint
from assets.pipeline.worker import Worker
from assets.report import Sheet
from orchestration.dagster_storage.plans import Plan, planned, put
from orchestration.ledger.batches import batches_named, batches_of_date, waiting_for_a_person
from orchestration.partitions import partition_of
from orchestration.tellers import (
    Teller,
    end,
    open_tellers,
    sorted_out,
    tell,
    teller_of,
    untold,
)
from orchestration.waiting_words import waits_texts

_SHEETS: dict[str, Sheet] = {
    "staged_events": staged_events.SHEET,
    "events": events.SHEET,
    "dead_letters": dead_letters.SHEET,
}

Place = tuple[str, str]
"""An asset, and a date of it."""


def show_waiting(
    context: dg.AssetCheckExecutionContext,
    worker: Worker,
    waiting: Sequence[Batch],
    *,
    by_hand: bool,
    alone: bool,
) -> str:
    """Keep the dates red to which this run has brought something, and tell of what is new.

    Gives why the run is to fail: nobody was told of a batch, or somebody has asked for its very
    date, `by_hand`. Empty: for nothing. It is `alone` if the run fails for nothing else.
    """
    if not waiting:
        return ""
    instance, run = context.instance, context.run
    tellers = open_tellers(instance, worker.settings.topic)
    touched = _touched(instance, run)
    new = untold(waiting, tellers)
    of_date = {place for place in touched if by_hand and place[1] == context.partition_key}
    asked = [batch for batch in waiting if _lacks_in(of_date, batch)]
    if new:
        tellers.insert(0, teller_of(run, new))
    of_new = {(asset, partition_of(batch.arrival_date)) for asset in _SHEETS for batch in new}
    _redden(instance, waiting, tellers, touched | of_new)
    failpoint("date-is-red")
    if not new and not asked:
        return ""
    tell(instance, teller_of(run, new or asked), opens=bool(new), alone=alone)
    told = new + [batch for batch in asked if batch not in new]
    return _words(told, "; all else that this run had to do is done" if alone else "")


def keep_red(context: dg.OpExecutionContext, worker: Worker) -> None:
    """Keep the dates red to which another job has brought something; it tells of nothing.

    Dagster's storage or the ledger may be away just then: the log says so, and all that the run was
    for is as it was. The next checks do it.
    """
    try:
        if waiting := waiting_for_a_person(worker.ledger, *worker.settings.topics):
            tellers = open_tellers(context.instance, worker.settings.topic)
            _redden(context.instance, waiting, tellers, _touched(context.instance, context.run))
    except Exception as error:
        # Dagster's PostgreSQL puts what went wrong into an exception of its own.
        if not any(isinstance(one, SQLAlchemyError) for one in (error, error.__cause__)):
            raise
        told = "a date may be green until the next checks, though a batch of it waits"
        context.log.warning(f"{told}: {error}")


def show_all(
    context: dg.AssetCheckExecutionContext, worker: Worker, waiting: Sequence[Batch]
) -> None:
    """Materialize the dates of which nothing waits any more, and keep all the others red.

    For the checks. A run that told of none but batches that this ledger does not know is left as it
    is: they are of another one.
    """
    instance = context.instance
    tellers = sorted_out(instance, worker.settings.topic)
    told = batches_named(worker.ledger, sorted({name for one in tellers for name in one.batch_ids}))
    waits = {batch.batch_id for batch in waiting}
    # One that has ended since `waiting` was read is the next run's: its date is red still.
    left = [batch for batch in told if _is_to_come(batch) or batch.batch_id in waits]
    days = sorted({batch.arrival_date for batch in [*told, *waiting]})
    red = _planned_by(instance, days, tellers)
    for ended in _of_nothing_more(worker, red, days, [*left, *waiting]):
        context.op_execution_context.log_event(ended)
    known, to_come = ({batch.batch_id for batch in some} for some in (told, left))
    still = []
    for teller in tellers:
        if teller.batch_ids & known and not teller.batch_ids & to_come:
            end(instance, teller.run)
        else:
            still.append(teller)
    all_places = {(asset, partition_of(day)) for asset in _SHEETS for day in days}
    by_open = {teller.run.run_id for teller in still}
    places = {place for place in all_places if red.get(place) not in by_open}
    _redden(instance, waiting, still, places)


def _touched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[Place]:
    """What a run has materialized so far."""
    of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
    found = instance.get_asset_partitions_for_run(run.run_id, of_type)
    return {(key.to_user_string(), day) for key, days in found.items() for day in days if day}


def _lacks_in(places: Collection[Place], batch: Batch) -> bool:
    """Whether one of these places is of the batch's date, and lacks it."""
    day = partition_of(batch.arrival_date)
    return any((name, day) in places and not one.is_done(batch) for name, one in _SHEETS.items())


def _redden(
    instance: dg.DagsterInstance,
    waiting: Iterable[Batch],
    tellers: Sequence[Teller],
    places: Collection[Place],
) -> None:
    """Plan those of these places that lack a batch, by a run that has told of one of their date."""
    by_day: dict[str, list[Batch]] = defaultdict(list)
    for batch in waiting:
        by_day[partition_of(batch.arrival_date)].append(batch)
    plans = []
    for day, batches in by_day.items():
        ids = {batch.batch_id for batch in batches}
        teller = next((one for one in tellers if one.batch_ids & ids), None)
        if teller is None:  # the next micro-batch tells of them
            continue
        for asset, sheet in _SHEETS.items():
            lacking = [batch for batch in batches if not sheet.is_done(batch)]
            if lacking and (asset, day) in places:
                words = f"{asset} of {day} lacks what waits: {waits_texts(lacking)}"
                plans.append(Plan(teller.run, asset, day, words))
    put(instance, plans)


def _planned_by(
    instance: dg.DagsterInstance, days: Iterable[date], tellers: Iterable[Teller]
) -> dict[Place, str]:
    """The places of these dates that one of these runs keeps red, and which run it is."""
    names = {partition_of(day) for day in days}
    failed = {teller.run.run_id for teller in tellers}
    return {
        (asset, day): run_id
        for asset in _SHEETS
        for day, run_id in planned(instance, asset, names).items()
        if run_id in failed
    }


def _of_nothing_more(
    worker: Worker, red: Mapping[Place, str], days: Iterable[date], to_come: Sequence[Batch]
) -> Iterator[dg.AssetMaterialization]:
    """Of the places that are red, and lack none of what is still to come."""
    topics = worker.settings.topics
    by_partition: dict[str, list[date]] = defaultdict(list)
    for day in days:  # dates out of range share one
        by_partition[partition_of(day)].append(day)
    for asset, sheet in _SHEETS.items():
        lacking = {partition_of(b.arrival_date) for b in to_come if not sheet.is_done(b)}
        for partition, its_days in by_partition.items():
            if (asset, partition) not in red or partition in lacking:
                continue
            of_days = [batches_of_date(worker.ledger, day, *topics) for day in its_days]
            there = [batch for found in of_days for batch in found if sheet.is_done(batch)]
            note = f"nothing of {partition} waits for a person any more"
            metadata = no_batch_metadata(sheet.kind, there, note)
            yield dg.AssetMaterialization(asset, partition=partition, metadata=metadata)


def _is_to_come(batch: Batch) -> bool:
    """Whether it waits, or a micro-batch is still to finish it."""
    return batch.dead_letters_loaded_at is None and batch.state is not State.SUPERSEDED


def _words(batches: Sequence[Batch], all_else: str) -> str:
    many = f"{len(batches):,} batches wait" if len(batches) > 1 else "a batch waits"
    return (
        f"{many} for a person{all_else}. Its date is red until then, and later runs succeed "
        f"without it. {waits_texts(batches, dated=True)}"
    )
