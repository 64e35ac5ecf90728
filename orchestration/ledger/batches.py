"""Batches in the ledger: planning, moving from state to state, and reading back.

Every write happens in one transaction that first checks the worker's fence, then compares and
swaps. What does not match what the worker thinks raises, and nothing is written. Readers are asked
for the topics whose batches count, with which come those of files imported beside them
(of_topics.py); one ledger may hold those of several deployments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from assets.pipeline.batch import (
    LOADED,
    TRANSITIONS,
    UNFINISHED,
    WAITING,
    Balance,
    Batch,
    Fingerprint,
    KeyFile,
    Kind,
    Range,
    Staged,
    StagedFile,
    State,
    Timing,
)
from assets.pipeline.errors import BatchError, PlanConflict
from orchestration.ledger.backoffs import batch_name
from orchestration.ledger.connection import now_us, reading
from orchestration.ledger.decisions import Decision, decide_open_gaps
from orchestration.ledger.keys import add_key_file
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.let_go import has_let_go, has_let_go_of_rows
from orchestration.ledger.of_topics import of_topics, only_its_import_can_read
from orchestration.ledger.planned import add_planned
from orchestration.ledger.redrives import carried_letters, forget_outcomes, own_balances, redriven
from orchestration.ledger.tables import (
    audits,
    backoffs,
    batches,
    fingerprints,
    key_files,
    lanes,
    ranges,
    rejections,
    staged_files,
)

NOT_LOADED = [state for state in State if state not in LOADED]


def open_lanes(
    ledger: Engine,
    lease: Lease,
    topic: str,
    cluster_id: str,
    topic_id: str,
    starts: Mapping[int, int],
) -> None:
    """Open lanes of a topic incarnation that the ledger sees for the first time."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        for partition, start in starts.items():
            connection.execute(
                insert(lanes).values(
                    cluster_id=cluster_id,
                    topic_id=topic_id,
                    partition=partition,
                    topic=topic,
                    planned_end=start,
                    opened_at=now_us(),
                )
            )


def planned_ends(ledger: Engine, cluster_id: str, topic_id: str) -> dict[int, int]:
    """Per partition, the offset up to which batches are planned. New partitions are missing."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(lanes.c.partition, lanes.c.planned_end).where(
                lanes.c.cluster_id == cluster_id, lanes.c.topic_id == topic_id
            )
        )
        return dict(rows.all())


def record_plan(ledger: Engine, lease: Lease, batch: Batch) -> None:
    """Store a planned batch and move its lanes on, all or nothing. Raises PlanConflict."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        for range_ in batch.ranges:
            _move_lane(connection, batch, range_)
        add_planned(connection, batch)
        connection.execute(
            insert(ranges),
            [
                {
                    "batch_id": batch.batch_id,
                    "partition": r.partition,
                    "start": r.start,
                    "end": r.end,
                }
                for r in batch.ranges
            ],
        )


def _move_lane(connection: Connection, batch: Batch, range_: Range) -> None:
    lane = and_(
        lanes.c.cluster_id == batch.cluster_id,
        lanes.c.topic_id == batch.topic_id,
        lanes.c.partition == range_.partition,
    )
    moved = connection.execute(
        update(lanes)
        .where(lane, lanes.c.planned_end == range_.start)
        .values(planned_end=range_.end)
    )
    if moved.rowcount == 1:
        return
    end = connection.execute(select(lanes.c.planned_end).where(lane)).scalar_one_or_none()
    if end is not None:
        raise PlanConflict(
            f"partition {range_.partition} is planned up to {end}, not {range_.start}"
        )
    try:
        connection.execute(
            insert(lanes).values(
                cluster_id=batch.cluster_id,
                topic_id=batch.topic_id,
                partition=range_.partition,
                topic=batch.topic,
                planned_end=range_.end,
                opened_at=batch.planned_at,
            )
        )
    except IntegrityError as error:  # looked for above, opened by another before this insert
        raise PlanConflict(f"partition {range_.partition} was opened by another planner") from error


def move(
    connection: Connection,
    lease: Lease,
    batch_id: str,
    to: State,
    *,
    only_from: State | None = None,
    **values: Any,
) -> None:
    """Move a batch to a state that may follow its present one, within the caller's transaction.

    `only_from` names the one state from which the caller means to move it. What no worker tries
    any more by itself is not said to fail now.
    """
    check_fence(connection, lease)
    if to in (*WAITING, State.SUPERSEDED):
        connection.execute(delete(backoffs).where(backoffs.c.name.startswith(batch_name(batch_id))))
    froms = [
        state
        for state, followers in TRANSITIONS.items()
        if to in followers and only_from in (None, state)
    ]
    moved = connection.execute(
        update(batches)
        .where(batches.c.batch_id == batch_id, batches.c.state.in_(froms))
        .values(state=to, **values)
    )
    if moved.rowcount != 1:
        now = connection.execute(
            select(batches.c.state).where(batches.c.batch_id == batch_id)
        ).scalar_one_or_none()
        raise BatchError(f"batch {batch_id} is {now or 'unknown'} and cannot become {to}")


def set_state(ledger: Engine, lease: Lease, batch_id: str, to: State, note: str = "") -> None:
    """Move a batch to a state, with the time that goes with it."""
    times = {State.LOADED: "loaded_at", State.COMMITTED: "committed_at"}
    values: dict[str, Any] = {"note": note}
    if to in times:
        values[times[to]] = now_us()
    with ledger.begin() as connection:
        move(connection, lease, batch_id, to, **values)


def stage_again(ledger: Engine, lease: Lease, batch_id: str, note: str) -> None:
    """Forget what was staged of a batch, of which nothing is loaded: it is planned again."""
    with ledger.begin() as connection:
        move(connection, lease, batch_id, State.PLANNED, staged_at=None, note=note)
        _forget_staged(connection, batch_id)


def give_up(ledger: Engine, lease: Lease, batch_id: str, note: str) -> None:
    """Forget what was staged of a redrive: its letters are free for another one."""
    with ledger.begin() as connection:
        supersede(connection, lease, batch_id, Decision.GIVEN_UP, note)


def supersede(
    connection: Connection, lease: Lease, batch_id: str, decision: Decision, note: str
) -> None:
    """Let go of a batch for good, of which nothing is loaded, in the caller's transaction.

    So a gap of it is decided, if there is one.
    """
    decide_open_gaps(connection, batch_id, decision)
    move(connection, lease, batch_id, State.SUPERSEDED, staged_at=None, note=note)
    _forget_staged(connection, batch_id)


def _forget_staged(connection: Connection, batch_id: str) -> None:
    forget_outcomes(connection, batch_id)
    for table in (staged_files, fingerprints, rejections):
        connection.execute(delete(table).where(table.c.batch_id == batch_id))


def set_dead_letters_loaded(ledger: Engine, lease: Lease, batch_id: str) -> None:
    """Note that the batch's dead letters are proved to be in ClickHouse."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        connection.execute(
            update(batches)
            .where(batches.c.batch_id == batch_id)
            .values(dead_letters_loaded_at=now_us())
        )


def add_timings(ledger: Engine, batch_id: str, timings: Mapping[str, Timing]) -> None:
    """Add to what the stages of a batch have taken so far, over all attempts."""
    with ledger.begin() as connection:
        known = connection.execute(
            select(batches.c.timings).where(batches.c.batch_id == batch_id).with_for_update()
        ).scalar_one()
        seconds: dict[str, tuple[float, float]] = json.loads(known)
        for stage, timing in timings.items():
            wall, cpu = seconds.get(stage, (0.0, 0.0))
            seconds[stage] = (round(wall + timing.wall, 4), round(cpu + timing.cpu, 4))
        connection.execute(
            update(batches)
            .where(batches.c.batch_id == batch_id)
            .values(timings=json.dumps(seconds))
        )


def register_staged(
    ledger: Engine,
    lease: Lease,
    batch_id: str,
    staged: Staged,
    key_file: KeyFile | None,
    code_version: str,
    *,
    hold: str = "",
    before: State = State.PLANNED,
    also: Callable[[Connection], None] = lambda connection: None,
) -> None:
    """Register what staging gave: files, balances, fingerprints, index; the batch is staged.

    With `hold`, which says why, it is held instead. `before` is the state it was staged from: of
    a held batch this takes the place of what was registered. `also` writes in the same transaction.
    """
    with ledger.begin() as connection:
        move(
            connection,
            lease,
            batch_id,
            State.HELD if hold else State.STAGED,
            only_from=before,
            staged_at=now_us(),
            bytes_read=staged.bytes_read,
            code_version=code_version,
            note=hold,
        )
        _forget_staged(connection, batch_id)
        also(connection)
        for partition, balance in staged.balances.items():
            connection.execute(
                update(ranges)
                .where(ranges.c.batch_id == batch_id, ranges.c.partition == partition)
                .values(
                    ok=balance.ok,
                    rejected=balance.rejected,
                    duplicate=balance.duplicate,
                    tombstone=balance.tombstone,
                    absent=balance.absent,
                    lost=balance.lost,
                )
            )
        for reason, records in staged.reasons.items():
            connection.execute(
                insert(rejections).values(batch_id=batch_id, reason=reason, records=records)
            )
        write_files(connection, batch_id, staged.files, staged.fingerprints)
        if key_file is not None:
            connection.execute(delete(key_files).where(key_files.c.path == key_file.path))
            add_key_file(connection, key_file)


def write_files(
    connection: Connection,
    batch_id: str,
    files: Iterable[StagedFile],
    prints: Mapping[Kind, Sequence[Fingerprint]],
    instead_of: Collection[Kind] = (),
) -> None:
    """Name files of a batch and what ClickHouse must hold of them, in the caller's transaction.

    Those of the kinds in `instead_of` are named no more.
    """
    if instead_of:
        for table in (staged_files, fingerprints):
            connection.execute(
                delete(table).where(table.c.batch_id == batch_id, table.c.kind.in_(instead_of))
            )
    for file in files:
        connection.execute(
            insert(staged_files).values(
                batch_id=batch_id,
                kind=file.kind,
                path=file.path,
                rows=file.rows,
                bytes=file.bytes,
                sha256=file.sha256,
            )
        )
    for kind, of_kind in prints.items():
        for print_ in of_kind:
            connection.execute(
                insert(fingerprints).values(
                    batch_id=batch_id,
                    kind=kind,
                    partition=print_.partition,
                    rows=print_.rows,
                    min_offset=print_.min_offset,
                    max_offset=print_.max_offset,
                    offset_sum=str(print_.offset_sum),
                    offset_square_sum=str(print_.offset_square_sum),
                )
            )


def unfinished_batches(ledger: Engine, *topics: str) -> list[Batch]:
    """Batches that a worker can carry on, oldest plan first."""
    return _read(
        ledger,
        and_(
            of_topics(topics),
            not_(only_its_import_can_read()),
            or_(
                batches.c.state.in_(UNFINISHED),
                and_(
                    batches.c.state == State.COMMITTED,
                    batches.c.dead_letters_loaded_at.is_(None),
                ),
            ),
        ),
    )


def give_back(ledger: Engine, lease: Lease, batch_id: str, waits: State, to: State) -> None:
    """Move a batch that waited for a person back to the workers, who try it without a wait."""
    with ledger.begin() as connection:
        connection.execute(delete(backoffs).where(backoffs.c.name.startswith(batch_name(batch_id))))
        decide_open_gaps(connection, batch_id, Decision.RETRIED)
        move(
            connection,
            lease,
            batch_id,
            to,
            only_from=waits,
            note="",
            retries=batches.c.retries + 1,
        )


def load_again(ledger: Engine, lease: Lease, batch_id: str, note: str) -> None:
    """Give a loaded batch, of which ClickHouse has lost rows, back to the workers.

    It counts as given back by a person, which makes the insert a new one to the server: under its
    old token it might be dropped as a repetition. Until it is proved again it is not loaded, and
    what audits found of it before counts no more. Raises BatchError when housekeeping was first.
    """
    with ledger.begin() as connection:
        move(connection, lease, batch_id, State.SUSPECT)
        if has_let_go(connection, [batch_id], Kind.EVENTS) or has_let_go_of_rows(
            connection, batch_id
        ):
            raise BatchError(f"batch {batch_id} was let go of just now")
        move(
            connection,
            lease,
            batch_id,
            State.LOADING,
            note=note,
            retries=batches.c.retries + 1,
            loaded_at=None,
            dead_letters_loaded_at=None,
            committed_at=None,
        )
        connection.execute(delete(audits).where(audits.c.batch_id == batch_id))


def loaded_ends(ledger: Engine, cluster_id: str, topic_id: str) -> dict[int, int]:
    """Per partition, the offset below which every batch is loaded."""
    return _ends_before(ledger, cluster_id, topic_id, batches.c.state.in_(NOT_LOADED))


def staged_ends(ledger: Engine, cluster_id: str, topic_id: str) -> dict[int, int]:
    """Per partition, the offset below which every batch is staged."""
    return _ends_before(ledger, cluster_id, topic_id, batches.c.staged_at.is_(None))


def _ends_before(
    ledger: Engine, cluster_id: str, topic_id: str, is_open: ColumnElement[bool]
) -> dict[int, int]:
    """Per partition, where the first such batch begins, else where planning is."""
    ends = planned_ends(ledger, cluster_id, topic_id)
    with reading(ledger) as connection:
        open_starts = connection.execute(
            select(ranges.c.partition, func.min(ranges.c.start))
            .join(batches, batches.c.batch_id == ranges.c.batch_id)
            .where(
                batches.c.cluster_id == cluster_id,
                batches.c.topic_id == topic_id,
                is_open,
            )
            .group_by(ranges.c.partition)
        ).all()
    return ends | dict(open_starts)


def oldest_date_not_loaded(
    ledger: Engine, topics: Sequence[str], but_of: Sequence[str]
) -> date | None:
    """The earliest arrival date of batches not loaded, those of some topic ids left out.

    Only batches that hold offsets of their own count.
    """
    with reading(ledger) as connection:
        found: date | None = connection.scalar(
            select(func.min(batches.c.arrival_date)).where(
                batches.c.topic.in_(topics),
                batches.c.topic_id.not_in(but_of),
                batches.c.batch_id.in_(select(ranges.c.batch_id)),
                batches.c.state.in_(NOT_LOADED),
            )
        )
    return found


def batches_in(ledger: Engine, topic: str, *states: State) -> list[Batch]:
    """Batches of one topic that stand in one of these states, the oldest plan first."""
    return _read(ledger, and_(batches.c.topic == topic, batches.c.state.in_(states)))


def waiting_for_a_person(ledger: Engine, *topics: str) -> list[Batch]:
    """Batches that no worker carries on by itself."""
    return _read(
        ledger,
        and_(of_topics(topics), batches.c.state.in_(WAITING)),
    )


def waiting_for_a_file(ledger: Engine, *topics: str) -> list[Batch]:
    """Batches that only the same import, said again, carries on: it has to have its file."""
    return _read(ledger, and_(of_topics(topics), only_its_import_can_read()))


def batches_of_run(ledger: Engine, run_id: str) -> list[Batch]:
    """Batches that a run planned, in the order of planning."""
    return _read(ledger, batches.c.run_id == run_id)


def unstaged_batches(ledger: Engine, first: date, last: date) -> list[str]:
    """Batches of these arrival dates, of any topic, of which nothing is staged now."""
    with reading(ledger) as connection:
        return list(
            connection.execute(
                select(batches.c.batch_id).where(
                    batches.c.arrival_date.between(first, last),
                    batches.c.staged_at.is_(None),
                )
            ).scalars()
        )


def staged_of_date(ledger: Engine, arrival_date: date) -> list[Batch]:
    """All batches of an arrival date, of every topic, that are staged."""
    return _read(
        ledger, and_(batches.c.arrival_date == arrival_date, batches.c.staged_at.is_not(None))
    )


def batches_of_date(ledger: Engine, arrival_date: date, *topics: str) -> list[Batch]:
    """All batches of an arrival date, in the order of planning."""
    return _read(ledger, and_(of_topics(topics), batches.c.arrival_date == arrival_date))


def arrival_dates(ledger: Engine, *topics: str) -> tuple[date, date] | None:
    """The first and the last arrival date of which there is a batch."""
    ends = func.min(batches.c.arrival_date), func.max(batches.c.arrival_date)
    with reading(ledger) as connection:
        first, last = connection.execute(select(*ends).where(of_topics(topics))).one()
    return None if first is None else (first, last)


def batches_between(ledger: Engine, first: date, last: date, *topics: str) -> list[Batch]:
    """All batches of the arrival dates from first to last, in the order of planning."""
    return _read(ledger, and_(of_topics(topics), batches.c.arrival_date.between(first, last)))


def batches_named(ledger: Engine, batch_ids: Sequence[str]) -> list[Batch]:
    """Those of these batches that there are, in the order of planning."""
    found: list[Batch] = []
    for some in in_parts(batch_ids):
        found += _read(ledger, batches.c.batch_id.in_(some))
    return sorted(found, key=lambda batch: (batch.planned_at, batch.batch_id))


def all_batches(ledger: Engine, *topics: str) -> list[Batch]:
    """All batches, in the order of planning."""
    return _read(ledger, of_topics(topics))


def batch_at(ledger: Engine, topic_id: str, partition: int, offset: int) -> Batch | None:
    """The batch that holds that offset; None when none is planned."""
    with reading(ledger) as connection:
        found = connection.execute(
            select(batches.c.batch_id)
            .join(ranges, ranges.c.batch_id == batches.c.batch_id)
            .where(
                batches.c.topic_id == topic_id,
                ranges.c.partition == partition,
                ranges.c.start <= offset,
                ranges.c.end > offset,
            )
            .limit(1)
        ).scalar_one_or_none()
    return None if found is None else read_batch(ledger, found)


def batches_with_dead_letters(
    ledger: Engine, arrival_date: date | None, *topics: str
) -> list[Batch]:
    """Loaded batches that have a file of dead letters still, of one arrival date or of all."""
    wanted: list[Any] = [
        of_topics(topics),
        batches.c.state.in_(LOADED),
        batches.c.batch_id.in_(
            select(staged_files.c.batch_id).where(
                staged_files.c.kind == Kind.DEAD_LETTERS, staged_files.c.let_go_at.is_(None)
            )
        ),
    ]
    if arrival_date is not None:
        wanted.append(batches.c.arrival_date == arrival_date)
    return _read(ledger, and_(*wanted))


def newest_batches(
    ledger: Engine, topic: str, limit: int, arrival_date: date | None = None
) -> list[Batch]:
    """The newest batches of a topic, or of one arrival date of it, in the order of planning."""
    chosen = batches.c.topic == topic
    if arrival_date is not None:
        chosen = and_(chosen, batches.c.arrival_date == arrival_date)
    newest = select(batches.c.batch_id).where(chosen).order_by(batches.c.planned_at.desc())
    return _read(ledger, batches.c.batch_id.in_(newest.limit(limit)))


def bytes_to_load(ledger: Engine, *topics: str) -> int:
    """How many bytes the files have that workers are to load."""
    with reading(ledger) as connection:
        found = connection.scalar(
            select(func.coalesce(func.sum(staged_files.c.bytes), 0))
            .join(batches, batches.c.batch_id == staged_files.c.batch_id)
            .where(
                of_topics(topics),
                batches.c.state.in_([State.STAGED, State.LOADING]),
            )
        )
    return int(found or 0)


def staged_rows_of_date(ledger: Engine, arrival_date: date, kind: Kind, *topics: str) -> int:
    """How many rows the files of that kind hold for an arrival date, over all its batches."""
    with ledger.begin() as connection:
        rows = connection.execute(
            select(func.coalesce(func.sum(staged_files.c.rows), 0))
            .join(batches, batches.c.batch_id == staged_files.c.batch_id)
            .where(
                of_topics(topics),
                batches.c.arrival_date == arrival_date,
                staged_files.c.kind == kind,
            )
        ).scalar_one()
    return int(rows)


def read_batch(ledger: Engine, batch_id: str) -> Batch:
    """One batch. Raises BatchError when there is none of that name."""
    found = _read(ledger, batches.c.batch_id == batch_id)
    if not found:
        raise BatchError(f"the ledger knows no batch {batch_id}: see `tidemark status`")
    return found[0]


def states(ledger: Engine, *topics: str) -> dict[State, int]:
    """How many batches stand in each state."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(batches.c.state, func.count()).where(of_topics(topics)).group_by(batches.c.state)
        )
        return {State(state): count for state, count in rows}


def average_record_bytes(ledger: Engine, topic: str) -> float | None:
    """Bytes of value a record in that of the last batches which had the largest; None at first."""
    with reading(ledger) as connection:
        last = (
            select(batches.c.batch_id, batches.c.bytes_read)
            .where(batches.c.topic == topic, batches.c.bytes_read > 0)
            .order_by(batches.c.planned_at.desc())
            .limit(_BATCHES_AVERAGED)
            .subquery()
        )
        averages = connection.execute(
            select(last.c.bytes_read, func.sum(ranges.c.end - ranges.c.start))
            .join(ranges, ranges.c.batch_id == last.c.batch_id)
            .group_by(last.c.batch_id, last.c.bytes_read)
        ).all()
    return max((float(size) / float(offsets) for size, offsets in averages), default=None)


_BATCHES_AVERAGED = 20


def _read(ledger: Engine, condition: Any) -> list[Batch]:
    with reading(ledger, snapshot=True) as connection:
        heads = connection.execute(
            select(batches).where(condition).order_by(batches.c.planned_at, batches.c.batch_id)
        ).all()
        ids = [head.batch_id for head in heads]
        of_batch = {
            table.name: _by_batch(connection, table, ids)
            for table in (ranges, staged_files, fingerprints, rejections)
        }
        letters: dict[str, int] = {}
        own: dict[str, dict[int, Balance]] = {}
        again: dict[str, dict[int, int]] = {}
        for some in in_parts(ids):
            letters |= carried_letters(connection, some)
            own |= own_balances(connection, some)
            again |= redriven(connection, some)
    return [
        Batch(
            batch_id=head.batch_id,
            topic=head.topic,
            cluster_id=head.cluster_id,
            topic_id=head.topic_id,
            arrival_date=head.arrival_date,
            generation=head.generation,
            code_version=head.code_version,
            run_id=head.run_id,
            planned_at=head.planned_at,
            ranges=tuple(
                sorted(
                    Range(row.partition, row.start, row.end)
                    for row in of_batch["ranges"].get(head.batch_id, ())
                )
            ),
            state=State(head.state),
            staged_at=head.staged_at,
            loaded_at=head.loaded_at,
            dead_letters_loaded_at=head.dead_letters_loaded_at,
            committed_at=head.committed_at,
            retries=head.retries,
            note=head.note,
            skips={
                row.partition: row.skip_to
                for row in of_batch["ranges"].get(head.batch_id, ())
                if row.skip_to is not None
            },
            timings={
                stage: Timing(*seconds) for stage, seconds in json.loads(head.timings).items()
            },
            staged=None
            if head.staged_at is None
            else _staged(
                head,
                of_batch["ranges"].get(head.batch_id, ()),
                of_batch["staged_files"].get(head.batch_id, ()),
                of_batch["fingerprints"].get(head.batch_id, ()),
                of_batch["rejections"].get(head.batch_id, ()),
                own.get(head.batch_id, {}),
                again.get(head.batch_id, {}),
            ),
            letters=letters.get(head.batch_id, 0),
            rows_let_go_at=head.rows_let_go_at,
        )
        for head in heads
    ]


_IDS_A_QUERY = 500  # SQLite takes a bounded number of parameters in one statement


def _by_batch(connection: Connection, table: Any, ids: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for wanted in in_parts(ids):
        for row in connection.execute(select(table).where(table.c.batch_id.in_(wanted))):
            found.setdefault(row.batch_id, []).append(row)
    return found


def in_parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """Ids in as many parts as statements are needed for them."""
    return (ids[at : at + _IDS_A_QUERY] for at in range(0, len(ids), _IDS_A_QUERY))


def _staged(
    head: Any,
    of_ranges: Iterable[Any],
    files: Iterable[Any],
    prints: Iterable[Any],
    reasons: Iterable[Any],
    own: Mapping[int, Balance],
    again: Mapping[int, int],
) -> Staged:
    by_kind: dict[Kind, list[Fingerprint]] = {}
    for row in prints:
        by_kind.setdefault(Kind(row.kind), []).append(
            Fingerprint(
                row.partition,
                row.rows,
                row.min_offset,
                row.max_offset,
                int(row.offset_sum),
                int(row.offset_square_sum),
            )
        )
    return Staged(
        files=tuple(
            StagedFile(Kind(row.kind), row.path, row.rows, row.bytes, row.sha256, row.let_go_at)
            for row in sorted(files, key=lambda row: list(Kind).index(row.kind))
        ),
        balances={
            **own,
            **{
                row.partition: Balance(
                    *(row.ok, row.rejected, row.duplicate, row.tombstone, row.absent),
                    redriven=again.get(row.partition, 0),
                    lost=row.lost or 0,
                )
                for row in of_ranges
            },
        },
        fingerprints={
            kind: tuple(sorted(found, key=lambda print_: print_.partition))
            for kind, found in by_kind.items()
        },
        bytes_read=head.bytes_read,
        reasons={
            row.reason: row.records
            for row in sorted(reasons, key=lambda row: (-row.records, row.reason))
        },
    )
