"""What a rebuild, a re-enriching or a replay of a date would do. Nothing is changed by looking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from assets.pipeline.batch import Kind
from assets.pipeline.date_anew import loaded_of, strangers_of, unsettled_of, with_files
from assets.pipeline.errors import BatchError
from assets.pipeline.filling import checked_file, rows_of
from assets.pipeline.reenrich import Changes, changes_of, changes_text
from assets.pipeline.replay import Expiry, expiries, lost_kinds, registered_kinds
from assets.pipeline.swap import rows_by_batch
from assets.pipeline.worker import Worker
from orchestration.ledger.rebuilds import Way


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


def preview(
    worker: Worker, day: date, way: Way = Way.REBUILD, *, all_files: bool = False
) -> Preview:
    """Look at a date without changing anything."""
    batches = loaded_of(worker, day)
    to_replay = _to_replay(worker, day, all_files) if way is Way.REPLAY else []
    damaged = {}
    changes = Changes() if way is Way.REENRICH else None
    for batch in batches if way is not Way.REPLAY else ():
        try:
            file = checked_file(worker, batch)
            if changes is not None:
                changes_of(worker.lake, file, changes)
        except BatchError as error:
            damaged[batch.batch_id] = str(error)
    return Preview(
        day,
        len(batches),
        rows_of(batches),
        sum(rows_by_batch(worker, "events", day).values()),
        damaged,
        tuple(batch.batch_id for batch in unsettled_of(worker, day)),
        strangers_of(worker, day, batches),
        changes,
        tuple(to_replay),
    )


def preview_text(seen: Preview) -> list[str]:
    """What it would do, for a person: a line for the date, then what is to be known besides."""
    change = seen.rows - seen.rows_now
    lines = [
        f"{seen.arrival_date}: {seen.batches:,} batches with {seen.rows:,} rows in the lake; the "
        f"table has {seen.rows_now:,} ({change:+,})"
    ]
    lines += [f"  batch {one} cannot be rebuilt: {why}" for one, why in seen.damaged.items()]
    lines += [
        f"  batch {one}: not known what the table has of it; see `tidemark status`"
        for one in seen.unsettled
    ]
    lines += [
        f"  {rows:,} rows of batch {one or '(none)'} would go, which is not loaded: that is "
        "refused without --drop-strangers"
        for one, rows in seen.strangers.items()
    ]
    lines += [f"  {line}" for line in replay_text(seen.to_replay)]
    if seen.changes is not None:
        lines += [f"  {line}" for line in changes_text(seen.changes)]
    return lines


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


def _to_replay(worker: Worker, day: date, all_files: bool) -> list[ToReplay]:
    found = []
    for batch in with_files(worker, day):
        kinds = registered_kinds(batch) if all_files else lost_kinds(worker.lake, batch).keys()
        if kinds:
            expired = tuple(expiries(worker, batch))
            found.append(ToReplay(batch.batch_id, tuple(sorted(kinds)), expired))
    return found
