"""A date that is made anew: its batches by what they have, rows of others in it, and its lease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date

from assets.pipeline.batch import LOADED, Batch, Kind, State
from assets.pipeline.replay import registered_kinds
from assets.pipeline.swap import rows_by_batch
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import batches_of_date
from orchestration.ledger.leases import Lease, held_lease

_UNSETTLED = (State.LOADING, State.SUSPECT)


@contextmanager
def rebuild_lease(worker: Worker, day: date) -> Iterator[Lease]:
    """One rebuild of a date at a time; the live batches go on beside it."""
    name = f"rebuild/{day}/{worker.settings.topic}"
    with held_lease(worker.ledger, name, worker.settings.lease_seconds) as lease:
        yield lease


def loaded_of(worker: Worker, day: date) -> list[Batch]:
    """The batches of a date whose events are proved to be loaded, if they have any."""
    return [
        batch
        for batch in batches_of_date(worker.ledger, day, *worker.settings.topics)
        if batch.state in LOADED and batch.staged and batch.staged.file(Kind.EVENTS)
    ]


def with_files(worker: Worker, day: date) -> list[Batch]:
    """The batches of a date that are loaded and have files of any kind."""
    batches = batches_of_date(worker.ledger, day, *worker.settings.topics)
    return [batch for batch in batches if batch.state in LOADED and registered_kinds(batch)]


def unsettled_of(worker: Worker, day: date) -> list[Batch]:
    """The batches of a date of which it is not known what ClickHouse has."""
    batches = batches_of_date(worker.ledger, day, *worker.settings.topics)
    return [batch for batch in batches if batch.state in _UNSETTLED]


def strangers_of(worker: Worker, day: date, batches: Sequence[Batch]) -> dict[str, int]:
    """Rows of the date in `events` of batches that are none of these, by batch."""
    ours = {batch.batch_id for batch in batches}
    found = rows_by_batch(worker, "events", day)
    return {batch_id: rows for batch_id, rows in found.items() if batch_id not in ours}
