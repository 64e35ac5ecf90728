"""Remakes: the files of batches that a rebuild makes anew, and those whose place they take.

    noted ─▶ in use (with the rebuild's move to `swapped`) ─▶ out of use again (with `returned`)

A remake is noted when its file is whole, so a rebuild that was killed goes on from there; one
without `after` says that the file would come out the same. Which files of a batch count is said by
the ledger's staged files alone: they change only here, in the transaction that moves the rebuild.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import msgspec
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from assets.pipeline.batch import Batch, KeyFile, Kind, Making
from assets.pipeline.errors import BatchError
from orchestration.ledger.batches import write_files
from orchestration.ledger.connection import reading
from orchestration.ledger.keys import add_key_file
from orchestration.ledger.leases import Lease, check_fence
from orchestration.ledger.of_topics import of_topics
from orchestration.ledger.tables import audits, batches, key_files, rebuilds, remakes, staged_files


@dataclass(frozen=True)
class Remake:
    """What a rebuild made of a batch; `after` is None where it came out the same."""

    rebuild_id: int
    batch_id: str
    before: Making
    after: Making | None

    def stands(self, batch: Batch) -> bool:
        """Whether the batch has the files that this was made of."""
        return self.before == making_of(batch, [file.kind for file in self.before.files])

    def is_used(self, batch: Batch) -> bool:
        """Whether the batch has the files that were made."""
        return self.after is not None and self.after == making_of(
            batch, [file.kind for file in self.after.files]
        )


def making_of(batch: Batch, kinds: Iterable[Kind]) -> Making:
    """The files of these kinds that a batch has now."""
    assert batch.staged is not None
    staged = batch.staged
    wanted = sorted(set(kinds))
    return Making(
        tuple(file for file in staged.files if file.kind in wanted),
        {kind: staged.fingerprints[kind] for kind in wanted if kind in staged.fingerprints},
        batch.generation,
        batch.code_version,
    )


def note_remake(
    ledger: Engine, lease: Lease, remake: Remake, key_file: KeyFile | None = None
) -> None:
    """Note what was made of a batch, in place of what was noted before.

    `key_file` has keys of it that the index of duplicates had lost.
    """
    with ledger.begin() as connection:
        check_fence(connection, lease)
        of_batch = (
            remakes.c.rebuild_id == remake.rebuild_id,
            remakes.c.batch_id == remake.batch_id,
        )
        connection.execute(delete(remakes).where(*of_batch))
        connection.execute(
            insert(remakes).values(
                rebuild_id=remake.rebuild_id,
                batch_id=remake.batch_id,
                before=_text(remake.before),
                after=None if remake.after is None else _text(remake.after),
            )
        )
        if key_file is not None:
            connection.execute(delete(key_files).where(key_files.c.path == key_file.path))
            add_key_file(connection, key_file)


def remakes_of(ledger: Engine, rebuild_id: int) -> dict[str, Remake]:
    """What a rebuild has made so far, by batch."""
    with reading(ledger) as connection:
        rows = connection.execute(
            select(remakes).where(remakes.c.rebuild_id == rebuild_id).order_by(remakes.c.batch_id)
        ).all()
    return {
        row.batch_id: Remake(
            row.rebuild_id,
            row.batch_id,
            _making(row.before),
            None if row.after is None else _making(row.after),
        )
        for row in rows
    }


def forget_remakes(ledger: Engine, lease: Lease, rebuild_id: int) -> None:
    """Forget what a rebuild has made, once none of it is there that does not count."""
    with ledger.begin() as connection:
        check_fence(connection, lease)
        connection.execute(delete(remakes).where(remakes.c.rebuild_id == rebuild_id))


def dates_with_remakes(ledger: Engine, topic: str) -> list[date]:
    """The arrival dates of rebuilds of which files are on record."""
    with reading(ledger) as connection:
        return list(
            connection.scalars(
                select(rebuilds.c.arrival_date)
                .where(
                    rebuilds.c.topic == topic,
                    rebuilds.c.rebuild_id.in_(select(remakes.c.rebuild_id)),
                )
                .distinct()
                .order_by(rebuilds.c.arrival_date)
            )
        )


def newest_generation(ledger: Engine, arrival_date: date, *topics: str) -> int:
    """How often the files of an arrival date were made anew so far."""
    with reading(ledger) as connection:
        found = connection.scalar(
            select(func.max(batches.c.generation)).where(
                batches.c.arrival_date == arrival_date, of_topics(topics)
            )
        )
    return int(found or 0)


def use(connection: Connection, batch_id: str, before: Making, after: Making) -> None:
    """Let files of a batch take the place of others, in the caller's transaction.

    What audits found of it before counts no more. Raises BatchError when those are not the ones
    that count now.
    """
    rows = connection.execute(
        select(staged_files.c.kind, staged_files.c.path, staged_files.c.sha256).where(
            staged_files.c.batch_id == batch_id,
            staged_files.c.kind.in_([file.kind for file in (*before.files, *after.files)]),
        )
    ).all()
    if {tuple(row) for row in rows} != {(f.kind, f.path, f.sha256) for f in before.files}:
        raise BatchError(
            f"batch {batch_id} was staged again, or has lost its file, since its files were made "
            f"anew: it has {', '.join(row.path for row in rows) or 'none'} now"
        )
    kinds = {*(file.kind for file in before.files), *before.fingerprints}
    write_files(connection, batch_id, after.files, after.fingerprints, instead_of=kinds)
    connection.execute(delete(audits).where(audits.c.batch_id == batch_id))
    connection.execute(
        update(batches)
        .where(batches.c.batch_id == batch_id)
        .values(generation=after.generation, code_version=after.code_version)
    )


def _text(making: Making) -> str:
    return msgspec.json.encode(making).decode()


def _making(text: str) -> Making:
    return msgspec.json.decode(text, type=Making)
