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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

from sqlalchemy import Connection

from assets.pipeline.batch import LOADED, Batch, Fingerprint, Kind, StagedFile, State
from assets.pipeline.clickhouse import known_settings, named_errors
from assets.pipeline.errors import BatchError, LeaseHeld, ProofFailed, StagedFileDamaged
from assets.pipeline.failpoints import failpoint
from assets.pipeline.load import insert, one_block, token
from assets.pipeline.loading import load_these
from assets.pipeline.prove import Proof, compare, describe_difference, read_fingerprints_of
from assets.pipeline.reenrich import Changes, changes_of
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
from assets.pipeline.replay import Expiry, expiries, lost_kinds, registered_kinds
from assets.pipeline.staged_files import check_staged
from assets.pipeline.swap import drop_copies, drop_partition, rows_by_batch, take_place
from assets.pipeline.worker import PutAside, Worker
from orchestration.ledger import rebuilds as ledger_rebuilds
from orchestration.ledger.batches import batches_of_date, in_parts
from orchestration.ledger.leases import Lease, held_lease
from orchestration.ledger.let_go import rows_are_back
from orchestration.ledger.rebuilds import OPEN, Rebuild, RebuildState, Way
from orchestration.ledger.remakes import newest_generation

SHADOW, PREVIOUS = "events_shadow", "events_previous"
_UNSETTLED = (State.LOADING, State.SUSPECT)

_PATIENCE_S = 900.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Preview:
    """What a rebuild of a date would do. `strangers` are rows by batch that it would take away."""

    arrival_date: date
    batches: int
    rows: int
    rows_now: int
    damaged: dict[str, str]
    unsettled: tuple[str, ...]
    strangers: dict[str, int]
    changes: Changes | None = None
    to_replay: tuple[ToReplay, ...] = ()


@dataclass(frozen=True)
class ToReplay:
    """A batch whose files a replay would make anew: which, and what Kafka has of its records."""

    batch_id: str
    kinds: tuple[Kind, ...]
    expiries: tuple[Expiry, ...]

    @property
    def is_whole(self) -> bool:
        """Whether Kafka still has all of it. A redrive's records come from elsewhere."""
        return bool(self.expiries) and all(each.is_whole for each in self.expiries)


def replay_text(batches: Sequence[ToReplay]) -> list[str]:
    """What a replay would do about batches whose files are lost, a line a batch and range."""
    lines = []
    for batch in batches:
        kinds = ", ".join(kind.replace("_", " ") for kind in batch.kinds)
        can = "can be replayed" if batch.is_whole else "cannot be replayed, its rows stay"
        lines.append(f"batch {batch.batch_id}, {kinds}: {can}")
        lines += [f"  partition {expiry}" for expiry in batch.expiries]
        if not batch.expiries:
            lines.append("  a redrive: its records come from dead letters, and not from Kafka")
    return lines


def preview(
    worker: Worker, day: date, way: Way = Way.REBUILD, *, all_files: bool = False
) -> Preview:
    """Look at a date without changing anything."""
    batches = _loaded(worker, day)
    to_replay = _to_replay(worker, day, all_files) if way is Way.REPLAY else []
    damaged = {}
    changes = Changes() if way is Way.REENRICH else None
    for batch in batches if way is not Way.REPLAY else ():
        try:
            file = _check(worker, batch)
            if changes is not None:
                changes_of(worker.lake, file, changes)
        except BatchError as error:
            damaged[batch.batch_id] = str(error)
    return Preview(
        day,
        len(batches),
        _rows(batches),
        sum(rows_by_batch(worker, "events", day).values()),
        damaged,
        tuple(batch.batch_id for batch in _unsettled(worker, day)),
        _strangers(worker, day, batches),
        changes,
        tuple(to_replay),
    )


def _to_replay(worker: Worker, day: date, all_files: bool) -> list[ToReplay]:
    found = []
    for batch in _with_files(worker, day):
        kinds = registered_kinds(batch) if all_files else lost_kinds(worker.lake, batch).keys()
        if kinds:
            expired = tuple(expiries(worker, batch))
            found.append(ToReplay(batch.batch_id, tuple(sorted(kinds)), expired))
    return found


def rebuild(
    worker: Worker,
    day: date,
    way: Way = Way.REBUILD,
    asked: Asked | None = None,
) -> Rebuild:
    """Rebuild a date that way, or go on with a rebuild of it that was cut short.

    Where files are to be made anew and none comes out otherwise, or none can be replayed, nothing
    is rebuilt: it is cancelled. `asked` knows then which batches are left as they are. Raises
    LeaseHeld while another worker is at it; StagedFileDamaged when the lake has not all of the
    date; ProofFailed when the shadow cannot be proved. `events` is as it was then.
    """
    asked = asked or Asked()
    with rebuild_lease(worker, day) as own:
        _make_anew(worker, day)
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
            batches = _loaded(worker, day)
            if found.makes_files and not remakes:
                return _nothing_to_do(worker, own, found, batches)
            _fill(worker, found, SHADOW, remakes.in_place(batches))
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
    worker.say(f"{day}: none of its {len(batches):,} batches changes, nothing is rebuilt")
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
        _make_tables(worker)
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
        _make_tables(worker)
        drop_copies(worker, day)
        drop_partition(worker, SHADOW, day)
        _tidy(worker, own, day)
        return found


def _swap(worker: Worker, leases: tuple[Lease, Lease], found: Rebuild, asked: Asked) -> Rebuild:
    own, topics = leases
    day = found.arrival_date
    _refuse_unsettled(worker, day)
    remakes = remake(worker, own, found, _to_make(worker, found), asked)
    batches = remakes.in_place(_loaded(worker, day))
    _fill(worker, found, SHADOW, batches)
    _prove_whole(worker, SHADOW, day, batches)
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
        _differences(worker, copy, batches)
        _prove_whole(worker, copy, day, batches)

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
    _differences(worker, "events", batches)
    place(worker, own, found, remakes)
    rows_are_back(worker.ledger, topics, day, *worker.settings.topics)
    found = _move(
        worker,
        leases,
        found,
        RebuildState.SWAPPED,
        into_use(remakes),
        batches=len(batches),
        rows=_rows(batches),
    )
    failpoint("remakes-used")
    drop_partition(worker, SHADOW, day)
    worker.say(f"{day}: rebuilt, {len(batches):,} batches with {_rows(batches):,} rows swapped in")
    return found


def _return(worker: Worker, leases: tuple[Lease, Lease], found: Rebuild) -> Rebuild:
    day = found.arrival_date
    _refuse_unsettled(worker, day)
    if found.state is RebuildState.SWAPPED:
        found = _move(worker, leases, found, RebuildState.RETURNING)
    # What was kept of a batch, whole or not, is brought back as it was.
    batches = _loaded(worker, day)
    remakes = remakes_of(worker, found).still_used(batches if found.way.keeps_files else [])
    batches = remakes.as_before(batches)
    kept = _found(worker, PREVIOUS, batches)
    strangers = _strangers(worker, day, batches).keys() - rows_by_batch(worker, PREVIOUS, day)
    if strangers:
        raise BatchError(
            f"{day} holds rows of batches that are not loaded, by this ledger, and were not kept: "
            f"{', '.join(sorted(strangers)[:3])}; they would be gone. See `tidemark status`"
        )
    _fill(worker, found, PREVIOUS, [batch for batch in batches if batch.batch_id not in kept])
    there = _found(worker, PREVIOUS, batches)
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


def _fill(worker: Worker, found: Rebuild, table: str, batches: Sequence[Batch]) -> None:
    """Bring what is missing of these batches into a table, each by one insert, and prove it."""
    day, there = found.arrival_date, _found(worker, table, batches)
    missing = []
    for batch in batches:
        proof = compare(_staged(batch), there.get(batch.batch_id, ()))
        if proof is Proof.OTHER:
            raise ProofFailed(
                f"{table} holds a part of batch {batch.batch_id}: "
                f"`tidemark backfill cancel {day}`, then rebuild again"
            )
        if proof is Proof.NOTHING:
            missing.append(batch)
    database = worker.settings.clickhouse_database
    for number, batch in enumerate(missing, 1):
        try:
            file = _check(worker, batch)
        except StagedFileDamaged:
            if found.way is not Way.REPLAY or table != SHADOW:
                raise
            _carry_over(worker, found, batch)
            continue
        named = f"{token(batch, file)}:{table}:{found.rebuild_id}:{found.state}"
        client = worker.clickhouse
        insert(client, database, table, worker.lake, file, batch, worker.run_id, named)
        worker.say(f"{day}: batch {batch.batch_id} in {table}, {number:,} of {len(missing):,}")
    _differences(worker, table, missing)


def _carry_over(worker: Worker, found: Rebuild, batch: Batch) -> None:
    """Let the rows of a batch that cannot be replayed stay: from `events` into the shadow.

    Raises StagedFileDamaged when they are not all there.
    """
    day, database = found.arrival_date, worker.settings.clickhouse_database
    there = _found(worker, "events", [batch]).get(batch.batch_id, ())
    if compare(_staged(batch), there) is not Proof.ALL:
        raise StagedFileDamaged(
            f"of batch {batch.batch_id} neither the lake nor Kafka has the records, and events has "
            f"not all of its rows: {describe_difference(_staged(batch), there)}. Bring its file "
            f"back, then go on; or `tidemark backfill cancel {day}` leaves the table as it is"
        )
    named = f"{batch.batch_id}:carried:{SHADOW}:{found.rebuild_id}:{found.state}"
    rows = sum(print_.rows for print_ in _staged(batch))
    with named_errors(f"carrying over {batch.batch_id}"):
        worker.clickhouse.command(
            f"INSERT INTO {database}.{SHADOW} SELECT * FROM {database}.events "
            "WHERE arrival_date = {day:Date} AND _batch_id = {batch_id:String}",
            parameters={"day": day, "batch_id": batch.batch_id},
            settings=known_settings(
                worker.clickhouse, {**one_block(rows), "insert_deduplication_token": named}
            ),
        )
    worker.say(f"{day}: batch {batch.batch_id} keeps its {rows:,} rows, they are carried over")


def _prove_whole(worker: Worker, table: str, day: date, batches: Sequence[Batch]) -> None:
    """Raise ProofFailed unless the shadow, or a copy of it, holds these batches and no more."""
    found = sum(rows_by_batch(worker, table, day).values())
    if found != _rows(batches):
        raise ProofFailed(
            f"{table} holds {found:,} rows of {day}, staged are {_rows(batches):,}: "
            f"`tidemark backfill cancel {day}`, then rebuild again"
        )


def _differences(worker: Worker, table: str, batches: Sequence[Batch]) -> None:
    """Raise ProofFailed unless a table holds all of each of these batches."""
    there = _found(worker, table, batches)
    for batch in batches:
        staged, found = _staged(batch), there.get(batch.batch_id, ())
        if compare(staged, found) is not Proof.ALL:
            raise ProofFailed(
                f"batch {batch.batch_id} does not balance in {table}: "
                f"{describe_difference(staged, found)}; `tidemark reconcile` names the offsets"
            )


def _refuse_unsettled(worker: Worker, day: date) -> None:
    if waiting := _unsettled(worker, day):
        names = ", ".join(f"{batch.batch_id} is {batch.state}" for batch in waiting[:3])
        raise BatchError(
            f"{day} cannot be swapped while it is not known what ClickHouse has of a batch: "
            f"{names}; see `tidemark status`, then go on with the rebuild"
        )


def _refuse_strangers(worker: Worker, day: date, batches: Sequence[Batch]) -> None:
    if strangers := _strangers(worker, day, batches):
        names = ", ".join(f"{id_ or '(none)'}: {n:,}" for id_, n in list(strangers.items())[:3])
        raise BatchError(
            f"{day} holds {sum(strangers.values()):,} rows of batches that are not loaded, by this "
            f"ledger ({names}): a rebuild would take them away. If it is to, say --drop-strangers"
        )


def _strangers(worker: Worker, day: date, batches: Sequence[Batch]) -> dict[str, int]:
    """Rows of the date in `events` of batches that are none of these, by batch."""
    ours = {batch.batch_id for batch in batches}
    found = rows_by_batch(worker, "events", day)
    return {batch_id: rows for batch_id, rows in found.items() if batch_id not in ours}


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


def _loaded(worker: Worker, day: date) -> list[Batch]:
    """The batches of a date whose events are proved to be loaded, if they have any."""
    return [
        batch
        for batch in batches_of_date(worker.ledger, day, *worker.settings.topics)
        if batch.state in LOADED and batch.staged and batch.staged.file(Kind.EVENTS)
    ]


def _with_files(worker: Worker, day: date) -> list[Batch]:
    """The batches of a date that are loaded and have files of any kind."""
    batches = batches_of_date(worker.ledger, day, *worker.settings.topics)
    return [batch for batch in batches if batch.state in LOADED and registered_kinds(batch)]


def _to_make(worker: Worker, found: Rebuild) -> list[Batch]:
    """The batches whose files a rebuild may make anew."""
    day = found.arrival_date
    return _with_files(worker, day) if found.way is Way.REPLAY else _loaded(worker, day)


def _unsettled(worker: Worker, day: date) -> list[Batch]:
    batches = batches_of_date(worker.ledger, day, *worker.settings.topics)
    return [batch for batch in batches if batch.state in _UNSETTLED]


def _check(worker: Worker, batch: Batch) -> StagedFile:
    file = batch.staged.file(Kind.EVENTS) if batch.staged else None
    assert file is not None
    check_staged(worker.lake, file)
    return file


def _staged(batch: Batch) -> tuple[Fingerprint, ...]:
    assert batch.staged is not None
    return batch.staged.fingerprints[Kind.EVENTS]


def _rows(batches: Sequence[Batch]) -> int:
    return sum(print_.rows for batch in batches for print_ in _staged(batch))


def _found(
    worker: Worker, table: str, batches: Sequence[Batch]
) -> dict[str, tuple[Fingerprint, ...]]:
    client, database = worker.clickhouse, worker.settings.clickhouse_database
    found: dict[str, tuple[Fingerprint, ...]] = {}
    for some in in_parts([batch.batch_id for batch in batches]):
        found |= read_fingerprints_of(client, database, table, some)
    return found


def _make_tables(worker: Worker) -> None:
    """Shadow and previous, where they are missing."""
    database = worker.settings.clickhouse_database
    for table in (SHADOW, PREVIOUS):
        with named_errors(f"making {table}"):
            worker.clickhouse.command(
                f"CREATE TABLE IF NOT EXISTS {database}.{table} AS {database}.events"
            )


def _make_anew(worker: Worker, day: date) -> None:
    """The same, in the form that `events` has now: partitions move only between equal tables.

    Raises BatchError where that would take what another date still needs.
    """
    database, form = worker.settings.clickhouse_database, _form(worker, "events")
    others = [
        rebuild.arrival_date
        for rebuild in ledger_rebuilds.all_rebuilds(worker.ledger, worker.settings.topic)
        if rebuild.state in OPEN and rebuild.arrival_date != day
    ]
    for table in (SHADOW, PREVIOUS):
        if _form(worker, table) in ("", form):
            continue
        if table == SHADOW and others:
            raise BatchError(
                f"{table} has not the form of events any more, and {others[0]} is being rebuilt in "
                f"it: `tidemark backfill cancel {others[0]}` first"
            )
        with named_errors(f"making {table} anew"):
            if table == PREVIOUS and _count(worker, table):
                raise BatchError(
                    f"{database}.{table} keeps replaced dates in a form that events has not any "
                    f"more: `DROP TABLE {database}.{table}` lets go of them, then rebuild again"
                )
            worker.clickhouse.command(f"DROP TABLE {database}.{table} SYNC")
    _make_tables(worker)


def _count(worker: Worker, table: str) -> int:
    database = worker.settings.clickhouse_database
    return int(str(worker.clickhouse.command(f"SELECT count() FROM {database}.{table}")))


def _form(worker: Worker, table: str) -> str:
    with named_errors(f"looking at {table}"):
        rows = worker.clickhouse.query(
            "SELECT substring(create_table_query, position(create_table_query, '(')) "
            "FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            parameters={"database": worker.settings.clickhouse_database, "table": table},
        ).result_rows
    return str(rows[0][0]) if rows else ""


@contextmanager
def rebuild_lease(worker: Worker, day: date) -> Iterator[Lease]:
    """One rebuild of a date at a time; the live batches go on beside it."""
    name = f"rebuild/{day}/{worker.settings.topic}"
    with held_lease(worker.ledger, name, worker.settings.lease_seconds) as lease:
        yield lease
