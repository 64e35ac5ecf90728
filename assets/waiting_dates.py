"""Waiting dates: a date of which a batch waits for a person is red in Dagster, until none does.

A date has the colour of the newest that is said of it: green by a materialization, red by a plan
of a run that failed. A micro-batch plans a date and materializes it, whatever else of it waits. So

    a batch comes to wait   its run does all the rest, and fails at its end, once for each batch,
                            with what to do; it has planned the batch's date              ─▶ red
    later micro-batches     succeed; what they bring to the date is told as ever, and then the
                            date is planned once more by the run that failed              ─▶ red
    released, given back    the micro-batch that loads it materializes the date           ─▶ green
    given up, or loaded by a command    the next run of the checks materializes it        ─▶ green

Invariant: after the last step of a micro-batch, or of the checks, a date is red for an asset as
long as a batch of it waits that the asset lacks. Dagster itself is asked what a date is, so what
made it green in between (another job, housekeeping, a run that was killed before its last step)
stands until then. Which batches a failed run has told of is in its tags: a run that is killed
before them leaves the telling to the next one, one that is killed after them has failed as well.
Where no batch waits, a micro-batch asks Dagster nothing of this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

from assets import dead_letters, events, staged_events
from assets.metadata import no_batch_metadata
from assets.pipeline.batch import Batch, State
from assets.pipeline.failpoints import failpoint
from assets.pipeline.worker import Worker
from assets.report import Sheet
from orchestration.ledger.batches import batches_named, batches_of_date
from orchestration.partitions import partition_of
from orchestration.waiting import waits_text

WAITS_TAG = "tidemark/waits"
"""On a run that failed because batches wait: `open`, and `over` when none of them does any more."""

_OPEN, _OVER = "open", "over"
_TOLD_TAG = ".dagster/tidemark_told"
"""Tags of this prefix are kept out of the UI's lists: which run it was, and which batches.

Numbered, of so many batches each: PostgreSQL indexes tags, and takes no more than 2.7 kB of one.
"""
_TOLD_A_TAG = 40

_SHEETS: dict[str, Sheet] = {
    "staged_events": staged_events.SHEET,
    "events": events.SHEET,
    "dead_letters": dead_letters.SHEET,
}

_RUNS = 1_000
_TOLD = 3  # batches in the words of a failure


@dataclass(frozen=True)
class _Teller:
    """A run that fails, or has failed, because of these batches."""

    run: dg.DagsterRun
    batch_ids: frozenset[str]


def told_of_waiting(run: dg.DagsterRun) -> bool:
    """Whether it was to fail because batches wait: with all else it went well."""
    return bool(_told_by(run))


def show_waiting(
    context: dg.AssetCheckExecutionContext, waiting: Sequence[Batch], *, by_hand: bool
) -> None:
    """Keep the dates of waiting batches red, and tell of those that nobody was told of.

    Raises dagster.Failure when it is this run's to tell: it is for a date, and a batch is new, or
    somebody has asked for its very date, `by_hand`.
    """
    if not waiting:
        return
    tellers = _tellers(context.instance)
    told = {key for teller in tellers for key in _told_by(teller.run)}
    own = [batch for batch in waiting if context.has_partition_key and _key(batch) not in told]
    if context.has_partition_key and by_hand:
        day = context.partition_key
        own += [b for b in waiting if b not in own and partition_of(b.arrival_date) == day]
    if own:
        tellers.insert(0, _Teller(context.run, frozenset(batch.batch_id for batch in own)))
    _redden(context.instance, waiting, tellers)
    failpoint("date-is-red")
    if own:
        keys = list(map(_key, own))
        tags = {
            f"{_TOLD_TAG}/{first}": " ".join(
                [context.run.run_id, *keys[first : first + _TOLD_A_TAG]]
            )
            for first in range(0, len(keys), _TOLD_A_TAG)
        }
        context.instance.add_run_tags(context.run.run_id, {WAITS_TAG: _OPEN, **tags})
        raise dg.Failure(_words(own), allow_retries=False)


def keep_red(instance: dg.DagsterInstance, waiting: Sequence[Batch]) -> None:
    """Keep the dates red of which waiting batches were told before; who tells is a micro-batch."""
    if waiting:
        _redden(instance, waiting, _tellers(instance))


def show_no_longer_waiting(
    context: dg.AssetCheckExecutionContext, worker: Worker, waiting: Sequence[Batch]
) -> None:
    """Materialize the dates of batches that were told of, wait no more, and load nothing."""
    instance = context.instance
    known = {batch.batch_id for batch in waiting}
    for teller in _tellers(instance):
        batches = batches_named(worker.ledger, sorted(teller.batch_ids))
        # One that has ended since `waiting` was read is the next run's: its date is red still.
        left = [batch for batch in batches if _is_to_come(batch) or batch.batch_id in known]
        days = {batch.arrival_date for batch in batches} - {batch.arrival_date for batch in left}
        for day in sorted(days):
            for asset, sheet in _SHEETS.items():
                if not _lacking(sheet, waiting, partition_of(day)) and _is_red(
                    instance, asset, partition_of(day), {teller.run.run_id}
                ):
                    context.op_execution_context.log_event(
                        _of_nothing_more(worker, asset, sheet, day)
                    )
        if not left:
            instance.add_run_tags(teller.run.run_id, {WAITS_TAG: _OVER})


def _tellers(instance: dg.DagsterInstance) -> list[_Teller]:
    """The runs that have failed because batches wait, and are not over; the newest first."""
    wanted = dg.RunsFilter(tags={WAITS_TAG: _OPEN}, statuses=[dg.DagsterRunStatus.FAILURE])
    return [
        _Teller(run, frozenset(key.partition("/")[0] for key in told))
        for run in instance.get_runs(wanted, limit=_RUNS)
        if (told := _told_by(run))
    ]


def _told_by(run: dg.DagsterRun) -> list[str]:
    """The batches that this run has told of; one that was re-executed from it has its tags."""
    told: list[str] = []
    for name, value in run.tags.items():
        if name.startswith(f"{_TOLD_TAG}/"):
            run_id, *keys = value.split()
            told += keys if run_id == run.run_id else []
    return told


def _key(batch: Batch) -> str:
    """A batch that waits again after it was given back is told of again."""
    return f"{batch.batch_id}/{batch.retries}"


def _lacking(sheet: Sheet, waiting: Iterable[Batch], partition: str) -> list[Batch]:
    """The waiting batches of a date that an asset does not have."""
    return [
        batch
        for batch in waiting
        if partition_of(batch.arrival_date) == partition and not sheet.is_done(batch)
    ]


def _is_to_come(batch: Batch) -> bool:
    """Whether it waits, or a micro-batch is still to finish it."""
    return batch.dead_letters_loaded_at is None and batch.state is not State.SUPERSEDED


def _redden(
    instance: dg.DagsterInstance, waiting: Sequence[Batch], tellers: Sequence[_Teller]
) -> None:
    by_day: dict[str, list[Batch]] = defaultdict(list)
    for batch in waiting:
        by_day[partition_of(batch.arrival_date)].append(batch)
    for day, batches in by_day.items():
        ids = {batch.batch_id for batch in batches}
        teller = next((one for one in tellers if one.batch_ids & ids), None)
        if teller is None:  # the next micro-batch tells of them
            continue
        failed = {one.run.run_id for one in tellers}
        for asset, sheet in _SHEETS.items():
            if _lacking(sheet, batches, day) and not _is_red(instance, asset, day, failed):
                _plan(instance, teller.run, asset, day)


def _is_red(instance: dg.DagsterInstance, asset: str, day: str, runs: set[str]) -> bool:
    """Whether the newest that is said of a date is that one of these runs has planned it."""
    key = dg.AssetKey(asset)
    planned = instance.get_latest_planned_materialization_info(key, day)
    if planned is None or planned.run_id not in runs:
        return False
    made = instance.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, {day}
    )
    return planned.storage_id > made.get(day, 0)


def _plan(instance: dg.DagsterInstance, run: dg.DagsterRun, asset: str, day: str) -> None:
    planned = AssetMaterializationPlannedData(dg.AssetKey(asset), partition=day)
    event = DagsterEvent.build_asset_materialization_planned_event(run.job_name, asset, planned)
    instance.report_dagster_event(event, run.run_id)


def _of_nothing_more(
    worker: Worker, asset: str, sheet: Sheet, day: date
) -> dg.AssetMaterialization:
    topics = worker.settings.topics
    there = [
        batch for batch in batches_of_date(worker.ledger, day, *topics) if sheet.is_done(batch)
    ]
    note = f"nothing of {day} waits for a person any more"
    return dg.AssetMaterialization(
        asset,
        partition=partition_of(day),
        metadata=no_batch_metadata(sheet.kind, there, note),
    )


def _words(batches: Sequence[Batch]) -> str:
    many = f"{len(batches):,} batches wait" if len(batches) > 1 else "a batch waits"
    more = len(batches) - _TOLD
    told = [f"{batch.arrival_date}: {waits_text(batch)}" for batch in batches[:_TOLD]]
    told += [f"and {more:,} more: `tidemark status`"] if more > 0 else []
    return (
        f"{many} for a person; all else that this run had to do is done. Its date is red until "
        f"then, and later runs succeed without it. {'; '.join(told)}"
    )
