"""Judge: whether a date may be let go of. It goes as a whole, or stays as a whole.

Invariant: nothing goes of a date of which ClickHouse, asked right then, does not hold every row
that was staged; nor of one at which anybody, a worker, a person or a rebuild, has something to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from assets.pipeline.audit import reprove
from assets.pipeline.batch import WAITING, Kind
from assets.pipeline.shadow import PREVIOUS
from assets.pipeline.worker import Worker
from orchestration.housekeeping.replaced import REBUILT, dates_in, dates_that_stay
from orchestration.ledger.audits import HOLDS, audits_of
from orchestration.ledger.batches import batches_named
from orchestration.ledger.let_go import Settled, batches_to_judge
from orchestration.ledger.rebuilds import OPEN, RebuildState, last_rebuild

WAITS = "a batch waits for a person"
UNFINISHED = "a batch is not loaded yet"
JUST_LOADED = "a batch was loaded lately"
REPLACED = "what a rebuild replaced is kept still"
REBUILT_LATELY = "it was rebuilt lately"
DIFFERS = "ClickHouse does not hold what was staged"
CHANGED = "it changed meanwhile"

_BATCHES_AT_ONCE = 200


@dataclass(frozen=True)
class Judgement:
    """Of a date: its batches as they were, and why it stays; empty when it may go."""

    batches: tuple[Settled, ...]
    why_kept: str = ""


def midnight_us(day: date) -> int:
    """When a date begins, in µs since 1970."""
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000


class Judge:
    """Judges dates as of one moment: `keep_days` after a date is over, and its batches loaded.

    In a dry run what rebuilds have replaced counts as gone where a real one drops it first.
    """

    def __init__(self, worker: Worker, keep_days: int, *, dry_run: bool = False) -> None:
        self._worker = worker
        self.before = datetime.now(UTC).date() - timedelta(days=keep_days)
        self._before_us = midnight_us(self.before)
        self._replaced = frozenset(
            dates_that_stay(worker) if dry_run else dates_in(worker, PREVIOUS)
        )

    def judge(self, day: date) -> Judgement:
        """Look at a date, and prove all of it. What keeps it is said, with the batch."""
        worker = self._worker
        batches = tuple(batches_to_judge(worker.ledger, day, *worker.settings.topics))
        why, detail = self._why_kept(day, batches)
        if why:
            worker.say(f"{day} stays: {why}{detail and f' ({detail})'}")
        return Judgement(batches, why)

    def _why_kept(self, day: date, batches: Sequence[Settled]) -> tuple[str, str]:
        for batch in batches:
            if batch.settled_at is None:
                detail = f"batch {batch.batch_id} is {batch.state}"
                return (WAITS if batch.state in WAITING else UNFINISHED), detail
            if batch.settled_at >= self._before_us:
                return JUST_LOADED, f"batch {batch.batch_id}"
        topic = self._worker.settings.topic
        rebuild = last_rebuild(self._worker.ledger, topic, day, but=RebuildState.CANCELLED)
        if rebuild is not None and rebuild.state in OPEN:
            return REBUILT, ""
        if day in self._replaced:
            return REPLACED, ""
        if (
            rebuild is not None
            and rebuild.state is RebuildState.SWAPPED
            and rebuild.moved_at >= self._before_us
        ):
            return REBUILT_LATELY, ""
        disproved = self._disproved([batch.batch_id for batch in batches])
        return (DIFFERS, disproved) if disproved else ("", "")

    def _disproved(self, batch_ids: Sequence[str]) -> str:
        """What is wrong with a batch, by the sums of now or an audit before; empty: nothing."""
        worker = self._worker
        database = worker.settings.clickhouse_database
        for at in range(0, len(batch_ids), _BATCHES_AT_ONCE):
            some = batch_ids[at : at + _BATCHES_AT_ONCE]
            kinds = (Kind.EVENTS, Kind.DEAD_LETTERS)
            found = reprove(worker.clickhouse, database, batches_named(worker.ledger, some), kinds)
            if found:
                return str(found[0])
            for audit in audits_of(worker.ledger, some):
                if audit.outcome != HOLDS:
                    return f"batch {audit.batch_id} {audit.outcome}: {audit.detail}"
        return ""
