"""Discards: an import of the wrong file is thrown away, as long as nothing of it is loaded.

    begun; its batches planned, staged, held, failed, a gap ─discard─▶ discarded, all superseded
    one at its insert, or loaded; rows in ClickHouse; resends counted,
    or not known                                               ─▶ refused, nothing is changed

It is all or nothing, in one transaction of the ledger under the import's lease and the topics':
the import is discarded, its batches are superseded and have no files, their gaps are decided. From
then on nobody loads them, and the index of duplicates passes over their keys, as over those of
whatever is not staged. Only then files are deleted.

What a crash leaves, and what the same `tidemark import --discard`, said again, does about it:

    before the transaction      all as it was: discards
    after it                    files that nobody names, copies in the mirror of what was: deletes
                                and mirrors
    the files are deleted       mirrors; so does `tidemark reconcile`

A worker that had slept since before may insert rows yet: the audit tells of them, as of those of a
redrive that was given up, and a repair deletes them.

The import stays on record, with when and by whom. The same file is another import from then on
(imports.py), with a topic id of its own: nothing that was thrown away has a name in common with it.

Events that came since and count as duplicates of its rows would be stored nowhere: then it is
refused, and releasing it is what loses nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from assets.pipeline.batch import LOADED, Batch, Kind, StagedFile, State
from assets.pipeline.circuit import STAGE
from assets.pipeline.errors import BatchError
from assets.pipeline.failpoints import failpoint
from assets.pipeline.leftovers import delete_leftovers
from assets.pipeline.mirror import mirror_whole
from assets.pipeline.prove import read_fingerprints_of
from assets.pipeline.resends import originals_near
from assets.pipeline.worker import Worker
from orchestration.ledger import imports as ledger_imports
from orchestration.ledger.attempts import tries_at
from orchestration.ledger.batches import all_batches
from orchestration.ledger.leases import held_lease

_TOO_LATE = (State.LOADING, *LOADED)


@dataclass(frozen=True)
class Discarded:
    """What was thrown away: `batches` as they were; `is_old` when it was so before."""

    one: ledger_imports.Import
    batches: tuple[Batch, ...]
    is_old: bool

    @property
    def rows(self) -> int:
        """How many rows of the file were planned."""
        return sum(batch.offsets for batch in self.batches)

    @property
    def files(self) -> tuple[StagedFile, ...]:
        """The files that were staged."""
        return tuple(file for batch in self.batches if batch.staged for file in batch.staged.files)


def discard_import(worker: Worker, name: str) -> Discarded:
    """Throw away an import, of which nothing is loaded. Raises BatchError when it cannot be."""
    ledger, topic = worker.ledger, worker.settings.topic
    ledger_imports.import_beside(ledger, topic, name)
    seconds = worker.settings.lease_seconds
    with held_lease(ledger, worker.import_lease_name, seconds) as own, worker.lease() as lease:
        one = ledger_imports.import_named(ledger, name)
        is_old = one.discarded_at is not None
        batches = tuple(all_batches(ledger, name))
        if not is_old:
            _check_not_loaded(worker, one, batches)
            _check_not_resent(worker, one, batches)
            one = ledger_imports.discard(ledger, (own, lease), one, batches)
            failpoint("discarded")
        now = all_batches(ledger, name)
        for batch in now:
            delete_leftovers(ledger, worker.lake, batch, tries_at(ledger, batch.batch_id, STAGE))
        failpoint("discard-deleted")
        mirror_whole(worker.clickhouse, worker.settings.clickhouse_database, ledger, now)
    return Discarded(one, batches, is_old)


def _check_not_loaded(worker: Worker, one: ledger_imports.Import, batches: Sequence[Batch]) -> None:
    for batch in batches:
        if batch.state in _TOO_LATE:
            how = (
                "rows of it may be there: let a micro-batch find out"
                if batch.state is State.LOADING
                else "what is loaded stays"
            )
            raise BatchError(
                f"{one.name} cannot be discarded: batch {batch.batch_id}, rows "
                f"{' '.join(map(str, batch.ranges))}, is {batch.state}; {how}"
            )
    database, ids = worker.settings.clickhouse_database, [batch.batch_id for batch in batches]
    for table in (Kind.EVENTS.value, Kind.DEAD_LETTERS.value) if ids else ():
        found = read_fingerprints_of(worker.clickhouse, database, table, ids)
        for batch_id, prints in found.items():
            rows = sum(print_.rows for print_ in prints)
            raise BatchError(
                f"{one.name} cannot be discarded: {database}.{table} has {rows:,} rows of batch "
                f"{batch_id}; see `tidemark batch {batch_id}`"
            )


def _check_not_resent(worker: Worker, one: ledger_imports.Import, batches: Sequence[Batch]) -> None:
    # One that is planned again may have been staged before, and others have met its keys.
    met = [
        batch.batch_id
        for batch in batches
        if batch.staged or tries_at(worker.ledger, batch.batch_id, STAGE)
    ]
    if not met:
        return

    def refuse(why: str) -> None:
        raise BatchError(
            f"{one.name} cannot be discarded: events that came since may count as duplicates "
            f"of its rows. {why}. When that is mended, say it again; `tidemark release {met[0]}` "
            "loads what it holds"
        )

    resent: dict[str, Counter[str]] = defaultdict(Counter)
    own = {batch.batch_id for batch in batches}
    for other, originals in originals_near(worker, one.arrival_date, own, refuse):
        for first in originals["first_batch_id"].to_pylist():
            resent[first][other] += 1
    for batch_id in met:
        if found := resent.get(batch_id):
            count, of = found.total(), ", ".join(found)
            raise BatchError(
                f"{one.name} cannot be discarded: {count:,} events that came since count as "
                f"duplicates of its rows (batch {of}) and would be stored nowhere; `tidemark "
                f"release {batch_id}` loads what it holds"
            )
