"""Rebuild: a date's partition of `events` made anew from the lake, proved, and swapped in.

    filling    staged files, or new ones made of them (remaking.py)
                            ─▶ events_shadow, each proved          live batches go on meanwhile
    keeping    what came in since, too; all proved; events ─▶ events_previous
    swapping   events_shadow ─▶ events, proved                     both under the topics' lease
    swapped    new files count; the shadow is emptied
               events_previous, and the old files, stay for TIDEMARK_KEEP_REPLACED_DAYS
    returning  what came in since ─▶ events_previous ─▶ events     `back`

Partitions move by REPLACE PARTITION, which is atomic and the same when it is done twice, and never
comes later than it may (swap.py). What is filled is found by the proof, as in loading, so a rebuild
that was killed goes on from where it stood. Invariant: nothing takes a partition's place before it
is proved to hold every loaded batch of that date, under the lease without which nothing is loaded.

Only what batches have loaded is in the new partition. A swap that would take away anything else is
refused unless it is asked for. A batch of the date at whose insert somebody may still be is settled
first: its rows would be gone, and its token would keep them from coming back. Whatever else is
staged, of this date or another, is up to the micro-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import date

from sqlalchemy import Connection

from assets.pipeline.batch import Batch, State
from assets.pipeline.date_anew import (
    loaded_of,
    rebuild_lease,
    strangers_of,
    unsettled_of,
    with_files,
)
from assets.pipeline.errors import BatchError, LeaseHeld, ProofFailed
from assets.pipeline.failpoints import failpoint
from assets.pipeline.filling import fill, prints_in, prove_each, prove_whole, rows_of
from assets.pipeline.loading import load_these
from assets.pipeline.remaking import (
    Asked,
    into_use,
    out_of_use,
    place,
    place_back,
    remake,
    remakes_of,
    tell,
    tidy,
)
from assets.pipeline.shadow import PREVIOUS, SHADOW, make_both, make_both_anew
from assets.pipeline.swap import drop_copies, drop_partition, rows_by_batch, take_place
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import rebuilds as ledger_rebuilds
from orchestration.ledger.batches import batches_of_date
from orchestration.ledger.leases import Lease
from orchestration.ledger.let_go import rows_are_back
from orchestration.ledger.rebuilds import OPEN, Rebuild, RebuildState, Way
from orchestration.ledger.remakes import newest_generation

_PATIENCE_S = 900.0
_POLL_S = 1.0


def rebuild(
    worker: Worker,
    day: date,
    way: Way = Way.REBUILD,
    asked: Asked | None = None,
) -> Rebuild:
    """Rebuild a date that way, or go on with a rebuild of it that was cut short.

    Where files are to be made anew and none comes out otherwise, or none can be replayed, or there
    is nothing of the date, nothing is rebuilt: it is cancelled. `asked` knows then which batches
    are left as they are. Raises
    LeaseHeld while another worker is at it; StagedFileDamaged when the lake has not all of the
    date; ProofFailed when the shadow cannot be proved. `events` is as it was then.
    """
    asked = asked or Asked()
    with rebuild_lease(worker, day) as own:
        make_both_anew(worker, day)
        _tidy(worker, own, day)
        found = ledger_rebuilds.last_rebuild(worker.ledger, worker.settings.topic, day)
        if found is not None and found.state is RebuildState.RETURNING:
            if rows_by_batch(worker, PREVIOUS, day):
                raise BatchError(f"{day} is being returned: `tidemark backfill back {day}` ends it")
            found = None  # there is nothing to return any more
        if found is None or found.state not in OPEN:
            drop_partition(worker, SHADOW, day)
            found = _begin(worker, own, day, way)
        if found.way is not way:
            raise BatchError(
                f"a {found.way} of {day} was begun: `tidemark backfill {found.way} {day}` goes on "
                f"with it, `tidemark backfill cancel {day}` gives it up"
            )
        # In any state: what takes its time is not left to when everybody waits.
        remakes = remake(worker, own, found, _to_make(worker, found), asked)
        if found.state is RebuildState.FILLING:
            batches = loaded_of(worker, day)
            if (found.makes_files and not remakes) or (
                not batches and not rows_by_batch(worker, "events", day)
            ):
                return _nothing_to_do(worker, own, found, batches)
            fill(worker, found, SHADOW, remakes.in_place(batches))
            failpoint("rebuild-filled")
        begun = found
        done = _when_free(worker, day, lambda topics: _swap(worker, (own, topics), begun, asked))
        return _told_and_tidied(worker, own, done)


def _begin(worker: Worker, own: Lease, day: date, way: Way) -> Rebuild:
    generation = None
    if way is Way.REENRICH:
        generation = newest_generation(worker.ledger, day, *worker.settings.topics) + 1
    return ledger_rebuilds.begin(
        worker.ledger, own, worker.settings.topic, day, worker.run_id, way, generation
    )


def _nothing_to_do(worker: Worker, own: Lease, found: Rebuild, batches: Sequence[Batch]) -> Rebuild:
    day = found.arrival_date
    found = _move(worker, (own,), found, RebuildState.CANCELLED)
    drop_partition(worker, SHADOW, day)
    _tidy(worker, own, day)
    if batches:
        worker.say(f"{day}: none of its {len(batches):,} batches changes, nothing is rebuilt")
    else:
        worker.say(f"{day}: no batch of it is loaded, nothing is rebuilt")
    return found


def back(worker: Worker, day: date) -> Rebuild:
    """Bring back the partition that the last rebuild of a date has replaced.

    Batches that were loaded since are in it, too. Raises BatchError when nothing is kept.
    """
    with rebuild_lease(worker, day) as own:
        found = ledger_rebuilds.last_rebuild(
            worker.ledger, worker.settings.topic, day, but=RebuildState.CANCELLED
        )
        if found is None or found.state not in (RebuildState.SWAPPED, RebuildState.RETURNING):
            stands = "was never rebuilt" if found is None else f"is {found.state}"
            raise BatchError(f"{day} {stands}: only what was swapped can be brought back")
        make_both(worker)
        if not rows_by_batch(worker, PREVIOUS, day):
            raise BatchError(f"nothing is kept of {day} from before it was rebuilt")
        swapped = found
        done = _when_free(worker, day, lambda topics: _return(worker, (own, topics), swapped))
        return _told_and_tidied(worker, own, done)


def cancel(worker: Worker, day: date) -> Rebuild:
    """Give up a rebuild that is not swapped in yet."""
    with rebuild_lease(worker, day) as own:
        found = ledger_rebuilds.last_rebuild(worker.ledger, worker.settings.topic, day)
        if found is None or found.state not in (RebuildState.FILLING, RebuildState.KEEPING):
            stands = "is not being rebuilt" if found is None else f"is {found.state}"
            raise BatchError(f"{day} {stands}: there is nothing to cancel")
        # From `keeping` on, what an earlier rebuild had replaced may be overwritten.
        is_keeping = found.state is RebuildState.KEEPING
        to = RebuildState.RETURNED if is_keeping else RebuildState.CANCELLED
        found = _move(worker, (own,), found, to)
        make_both(worker)
        drop_copies(worker, day)
        drop_partition(worker, SHADOW, day)
        _tidy(worker, own, day)
        return found


def _swap(worker: Worker, leases: tuple[Lease, Lease], found: Rebuild, asked: Asked) -> Rebuild:
    own, topics = leases
    day = found.arrival_date
    _refuse_unsettled(worker, day)
    remakes = remake(worker, own, found, _to_make(worker, found), asked)
    batches = remakes.in_place(loaded_of(worker, day))
    fill(worker, found, SHADOW, batches)
    prove_whole(worker, SHADOW, day, batches)
    if found.state is not RebuildState.SWAPPING:
        if not asked.drop_strangers:
            _refuse_strangers(worker, day, batches)
        if found.state is RebuildState.FILLING:
            found = _move(worker, leases, found, RebuildState.KEEPING)
        take_place(
            worker, topics, "events", PREVIOUS, day, may_be_empty=True, point="rebuild-keeps"
        )
        failpoint("rebuild-kept")
        found = _move(worker, leases, found, RebuildState.SWAPPING)
    failpoint("rebuild-swapping")

    def prove(copy: str) -> None:
        prove_each(worker, copy, batches)
        prove_whole(worker, copy, day, batches)

    take_place(
        worker,
        topics,
        SHADOW,
        "events",
        day,
        may_be_empty=not batches,
        prove=prove,
        point="rebuild-swaps",
    )
    failpoint("rebuild-replaced")
    prove_each(worker, "events", batches)
    place(worker, own, found, remakes)
    rows_are_back(worker.ledger, topics, day, *worker.settings.topics)
    found = _move(
        worker,
        leases,
        found,
        RebuildState.SWAPPED,
        into_use(remakes),
        batches=len(batches),
        rows=rows_of(batches),
    )
    failpoint("remakes-used")
    drop_partition(worker, SHADOW, day)
    worker.say(
        f"{day}: rebuilt, {len(batches):,} batches with {rows_of(batches):,} rows swapped in"
    )
    return found


def _return(worker: Worker, leases: tuple[Lease, Lease], found: Rebuild) -> Rebuild:
    day = found.arrival_date
    _refuse_unsettled(worker, day)
    if found.state is RebuildState.SWAPPED:
        found = _move(worker, leases, found, RebuildState.RETURNING)
    # What was kept of a batch, whole or not, is brought back as it was.
    batches = loaded_of(worker, day)
    remakes = remakes_of(worker, found).still_used(batches if found.way.keeps_files else [])
    batches = remakes.as_before(batches)
    kept = prints_in(worker, PREVIOUS, batches)
    strangers = strangers_of(worker, day, batches).keys() - rows_by_batch(worker, PREVIOUS, day)
    if strangers:
        raise BatchError(
            f"{day} holds rows of batches that are not loaded, by this ledger, and were not kept: "
            f"{', '.join(sorted(strangers)[:3])}; they would be gone. See `tidemark status`"
        )
    fill(worker, found, PREVIOUS, [batch for batch in batches if batch.batch_id not in kept])
    there = prints_in(worker, PREVIOUS, batches)
    if any(there.get(batch_id) != prints for batch_id, prints in kept.items()):
        raise ProofFailed(f"{PREVIOUS} does not hold of {day} what was kept: it was changed")
    take_place(worker, leases[1], PREVIOUS, "events", day, point="rebuild-returns")
    failpoint("rebuild-returned")
    place_back(worker, leases[0], remakes)
    found = _move(worker, leases, found, RebuildState.RETURNED, out_of_use(remakes))
    failpoint("remakes-returned")
    return found


def _when_free(worker: Worker, day: date, do: Callable[[Lease], Rebuild]) -> Rebuild:
    """Do it under the topics' lease, between two micro-batches.

    Raises LeaseHeld when a micro-batch is still at work after a long while.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with worker.lease() as topics:
                drop_copies(worker, day)
                _settle(worker, topics, day)
                return do(topics)
        except LeaseHeld as error:
            if time.monotonic() > until:
                raise
            worker.say(f"waits for its turn: {error}")
            time.sleep(_POLL_S)


def _settle(worker: Worker, topics: Lease, day: date) -> None:
    """Load what of the date was at its insert, and nobody knows what came of that."""
    batches = batches_of_date(worker.ledger, day, *worker.settings.topics)
    aside = PutAside()
    load_these(worker, topics, [b for b in batches if b.state is State.LOADING], aside)
    aside.raise_first()


def _refuse_unsettled(worker: Worker, day: date) -> None:
    if waiting := unsettled_of(worker, day):
        names = ", ".join(f"{batch.batch_id} is {batch.state}" for batch in waiting[:3])
        raise BatchError(
            f"{day} cannot be swapped while it is not known what ClickHouse has of a batch: "
            f"{names}; see `tidemark status`, then go on with the rebuild"
        )


def _refuse_strangers(worker: Worker, day: date, batches: Sequence[Batch]) -> None:
    if strangers := strangers_of(worker, day, batches):
        names = ", ".join(f"{id_ or '(none)'}: {n:,}" for id_, n in list(strangers.items())[:3])
        raise BatchError(
            f"{day} holds {sum(strangers.values()):,} rows of batches that are not loaded, by this "
            f"ledger ({names}): a rebuild would take them away. If it is to, say --drop-strangers"
        )


def _move(
    worker: Worker,
    leases: tuple[Lease, ...],
    found: Rebuild,
    to: RebuildState,
    also: Callable[[Connection], None] = lambda connection: None,
    **values: int,
) -> Rebuild:
    return ledger_rebuilds.move(worker.ledger, leases, found, to, also, **values)


def _told_and_tidied(worker: Worker, own: Lease, done: Rebuild) -> Rebuild:
    """What needs no topics' lease: nobody is kept waiting for it."""
    tell(worker, remakes_of(worker, done))
    _tidy(worker, own, done.arrival_date)
    return done


def _tidy(worker: Worker, own: Lease, day: date) -> None:
    tidy(worker, own, day, can_be_returned=bool(rows_by_batch(worker, PREVIOUS, day)))


def _to_make(worker: Worker, found: Rebuild) -> list[Batch]:
    """The batches whose files a rebuild may make anew."""
    day = found.arrival_date
    return with_files(worker, day) if found.way is Way.REPLAY else loaded_of(worker, day)
