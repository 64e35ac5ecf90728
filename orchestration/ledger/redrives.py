"""Redrives in the ledger: which dead letters were tried again, how often, and what became of each.

    dead letter (old batch, partition, offset) ─▶ try, in a batch of its own ─▶ event, with its row
                                                                           ├─▶ duplicate
                                                                           └─▶ rejected once more

A letter that became an event or a duplicate, or is being tried just now, is not planned again: the
plan asks for that in its own transaction. The outcomes are registered together with the staged
file, and count for the old batch's balance as soon as the redrive's rows are proved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Connection, Engine, and_, bindparam, delete, func, insert, select, update

from assets.pipeline.batch import LOADED, Balance, Batch, Kind, State
from assets.pipeline.errors import BatchError, PlanConflict
from orchestration.ledger.connection import reading
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.let_go import has_let_go
from orchestration.ledger.planned import add_planned
from orchestration.ledger.tables import batches, redrive_counts, redrive_letters, redrives


class Place(NamedTuple):
    """Where a record stands in its topic."""

    partition: int
    offset: int


class Outcome(StrEnum):
    """What became of a dead letter that was tried again."""

    EVENT = "event"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Letter:
    """A dead letter that is to be tried again, for the `number`th time.

    `project_id` is that of its token, if a project has that by now.
    """

    place: Place
    old_batch_id: str
    reason: str
    number: int
    project_id: int | None


@dataclass(frozen=True)
class Past:
    """What was done with a dead letter before: failed tries, and how it stands if it is settled.

    `settled` is empty for one that can be tried again; `under way` while a batch carries it.
    `last` is the number of the last try at it, those that were given up included.
    """

    tries: int = 0
    settled: str = ""
    last: int = 0


@dataclass(frozen=True)
class Try:
    """One try at a dead letter, for the person who asks what became of it."""

    batch_id: str
    old_batch_id: str
    reason: str
    number: int
    outcome: Outcome | None
    new_reason: str | None
    given_up: bool


UNDER_WAY = "under way"

Results = Counter[tuple[str, Outcome, str]]
"""How many letters of a reason came to which outcome, and for which reason they were rejected."""


def record_redrive(
    ledger: Engine, lease: Lease, batch: Batch, letters: Sequence[Letter], asked: str
) -> None:
    """Store a planned redrive with its letters. Raises PlanConflict when one is settled.

    No lane moves: these offsets were planned long ago.
    """
    with ledger.begin() as connection:
        check_fence(connection, lease)
        places = {letter.place for letter in letters}
        settled = {
            place
            for place, past in _past(connection, batch.topic_id, places).items()
            if past.settled
        }
        if settled:
            raise PlanConflict(f"{len(settled):,} of the dead letters are redriven by now")
        add_planned(connection, batch)
        connection.execute(
            insert(redrives).values(batch_id=batch.batch_id, letters=len(letters), asked=asked)
        )
        connection.execute(
            insert(redrive_letters),
            [
                {
                    "batch_id": batch.batch_id,
                    "partition": letter.place.partition,
                    "offset": letter.place.offset,
                    "old_batch_id": letter.old_batch_id,
                    "reason": letter.reason,
                    "number": letter.number,
                    "project_id": letter.project_id,
                }
                for letter in letters
            ],
        )
        # Asked last: these rows hold up housekeeping, which looks for them before it lets go.
        olds = select(redrive_letters.c.old_batch_id).where(
            redrive_letters.c.batch_id == batch.batch_id
        )
        if has_let_go(connection, olds, Kind.DEAD_LETTERS):
            raise PlanConflict("some of the dead letters were let go just now")


def letters_of(ledger: Engine, batch_id: str) -> list[Letter]:
    """The letters that a redrive carries, in the order of their places."""
    columns = redrive_letters.c
    with reading(ledger) as connection:
        rows = connection.execute(
            select(redrive_letters)
            .where(columns.batch_id == batch_id)
            .order_by(columns.partition, columns.offset)
        ).all()
    return [
        Letter(
            Place(row.partition, row.offset),
            row.old_batch_id,
            row.reason,
            row.number,
            row.project_id,
        )
        for row in rows
    ]


def register_outcomes(
    connection: Connection, batch_id: str, outcomes: Mapping[Place, tuple[Outcome, str]]
) -> None:
    """Note what became of each letter of a redrive, and for which reason, in the caller's
    transaction. Raises BatchError unless it is all of them."""
    columns = redrive_letters.c
    letters = connection.execute(
        select(columns.partition, columns.offset, columns.old_batch_id).where(
            columns.batch_id == batch_id
        )
    ).all()
    if {Place(row.partition, row.offset) for row in letters} != outcomes.keys():
        raise BatchError(
            f"redrive {batch_id} carries {len(letters):,} dead letters, and {len(outcomes):,} "
            "came out, or others"
        )
    counts: Counter[tuple[str, int, Outcome]] = Counter()
    for partition, offset, old_batch_id in letters:
        counts[old_batch_id, partition, outcomes[Place(partition, offset)][0]] += 1
    connection.execute(
        update(redrive_letters)
        .where(
            columns.batch_id == batch_id,
            columns.partition == bindparam("at_partition"),
            columns.offset == bindparam("at_offset"),
        )
        .values(outcome=bindparam("came_to"), new_reason=bindparam("because")),
        [
            {
                "at_partition": place.partition,
                "at_offset": place.offset,
                "came_to": outcome,
                "because": reason or None,
            }
            for place, (outcome, reason) in outcomes.items()
        ],
    )
    lanes = sorted({(old, partition) for old, partition, _ in counts})
    connection.execute(
        insert(redrive_counts),
        [
            {
                "batch_id": batch_id,
                "old_batch_id": old,
                "partition": partition,
                "events": counts[old, partition, Outcome.EVENT],
                "duplicates": counts[old, partition, Outcome.DUPLICATE],
                "rejected": counts[old, partition, Outcome.REJECTED],
            }
            for old, partition in lanes
        ],
    )


def forget_outcomes(connection: Connection, batch_id: str) -> None:
    """The letters of a redrive are to be staged again; nothing is known of them any more."""
    connection.execute(delete(redrive_counts).where(redrive_counts.c.batch_id == batch_id))
    connection.execute(
        update(redrive_letters)
        .where(redrive_letters.c.batch_id == batch_id, redrive_letters.c.outcome.is_not(None))
        .values(outcome=None, new_reason=None)
    )


def past_of(ledger: Engine, topic_id: str, places: Iterable[Place]) -> dict[Place, Past]:
    """What was done with these dead letters before; those that were never tried are missing."""
    with reading(ledger) as connection:
        return _past(connection, topic_id, places)


def _past(connection: Connection, topic_id: str, places: Iterable[Place]) -> dict[Place, Past]:
    wanted = set(places)
    columns = redrive_letters.c
    found: dict[Place, Past] = {}
    for partition in sorted({place.partition for place in wanted}):
        offsets = [place.offset for place in wanted if place.partition == partition]
        rows = connection.execute(
            select(columns.offset, columns.number, columns.outcome, batches.c.state)
            .join(batches, batches.c.batch_id == columns.batch_id)
            .where(
                batches.c.topic_id == topic_id,
                columns.partition == partition,
                columns.offset.between(min(offsets), max(offsets)),
            )
        )
        for offset, number, outcome, state in rows:
            place = Place(partition, offset)
            if place not in wanted:
                continue
            past = found.get(place, Past())
            tries, settled = past.tries, past.settled
            if outcome == Outcome.REJECTED:
                tries += 1
            elif state != State.SUPERSEDED:
                settled = outcome or UNDER_WAY
            found[place] = Past(tries, settled, max(past.last, number))
    return found


def results_of(ledger: Engine, batch_ids: Sequence[str]) -> Results:
    """What became of the letters of these redrives; those not staged yet are left out."""
    columns = redrive_letters.c
    results: Results = Counter()
    with reading(ledger) as connection:
        for batch_id in batch_ids:
            rows = connection.execute(
                select(columns.reason, columns.outcome, columns.new_reason, func.count())
                .where(columns.batch_id == batch_id, columns.outcome.is_not(None))
                .group_by(columns.reason, columns.outcome, columns.new_reason)
            )
            for reason, outcome, new_reason, count in rows:
                results[reason, Outcome(outcome), new_reason or ""] += count
    return results


def tries_of(ledger: Engine, topic: str, partition: int, offset: int) -> list[Try]:
    """Every try at the dead letter of a place, the first one first."""
    columns = redrive_letters.c
    with reading(ledger) as connection:
        rows = connection.execute(
            select(
                columns.batch_id,
                columns.old_batch_id,
                columns.reason,
                columns.number,
                columns.outcome,
                columns.new_reason,
                batches.c.state,
            )
            .join(batches, batches.c.batch_id == columns.batch_id)
            .where(
                batches.c.topic == topic,
                columns.partition == partition,
                columns.offset == offset,
            )
            .order_by(columns.number)
        ).all()
    return [
        Try(
            *row[:4],
            Outcome(row[4]) if row[4] else None,
            row[5],
            given_up=row[6] == State.SUPERSEDED,
        )
        for row in rows
    ]


def old_batches_of(ledger: Engine, batch_ids: Sequence[str]) -> list[str]:
    """The batches whose dead letters these redrives carry."""
    with reading(ledger) as connection:
        return list(
            connection.scalars(
                select(redrive_letters.c.old_batch_id)
                .distinct()
                .where(redrive_letters.c.batch_id.in_(batch_ids))
                .order_by(redrive_letters.c.old_batch_id)
            )
        )


def carried_letters(connection: Connection, batch_ids: Sequence[str]) -> dict[str, int]:
    """How many letters those of these batches carry that are redrives."""
    rows = connection.execute(
        select(redrives.c.batch_id, redrives.c.letters).where(redrives.c.batch_id.in_(batch_ids))
    )
    return dict(rows.all())


def own_balances(connection: Connection, batch_ids: Sequence[str]) -> dict[str, dict[int, Balance]]:
    """Per redrive and partition, what became of its letters."""
    columns = redrive_counts.c
    found: dict[str, dict[int, Balance]] = {}
    for batch_id, partition, events, duplicates in connection.execute(
        select(
            columns.batch_id,
            columns.partition,
            func.sum(columns.events),
            func.sum(columns.duplicates),
        )
        .where(columns.batch_id.in_(batch_ids))
        .group_by(columns.batch_id, columns.partition)
    ):
        balance = Balance(ok=int(events), duplicate=int(duplicates))
        found.setdefault(batch_id, {})[partition] = balance
    return found


def redriven(connection: Connection, batch_ids: Sequence[str]) -> dict[str, dict[int, int]]:
    """Per old batch and partition, how many of its dead letters are events by now, and proved."""
    columns = redrive_counts.c
    found: dict[str, dict[int, int]] = {}
    for batch_id, partition, events in connection.execute(
        select(columns.old_batch_id, columns.partition, func.sum(columns.events))
        .join(batches, and_(batches.c.batch_id == columns.batch_id, batches.c.state.in_(LOADED)))
        .where(columns.old_batch_id.in_(batch_ids))
        .group_by(columns.old_batch_id, columns.partition)
    ):
        found.setdefault(batch_id, {})[partition] = int(events)
    return found
