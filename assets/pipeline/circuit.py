"""Circuit: what is waited for, how long, and what is not held up by it.

    a try fails ─┬─ wait, repair ─▶ the table waits: one probe an interval, oldest batch first;
                 │                  a batch that failed so twice comes after the others
                 ├─ alone ────────▶ the batch waits by itself, those behind it go on
                 ├─ unknown ──────▶ the same, a few times; then a person is asked
                 └─ refused ──────▶ a person is asked at once

Which error is which stands in codes.py. Intervals double up to a cap, with jitter. What is known of
failures stands in the ledger, for the next process. Invariant: where nothing fails nothing is
written and nothing waits; a success ends every wait for the table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from assets.pipeline.batch import Batch, Kind, State
from assets.pipeline.codes import Remedy
from assets.pipeline.errors import (
    BatchError,
    ClickHouseAway,
    ClickHouseRefused,
    LakeTrouble,
    LoadingPaused,
    StagingPaused,
    UnknownTrouble,
)
from assets.pipeline.lake import Lake
from assets.pipeline.room import why_no_room
from orchestration.ledger.backoffs import (
    Backoff,
    backoffs_now,
    batch_name,
    forget_failures,
    note_failure,
    table_name,
)
from orchestration.ledger.batches import unfinished_batches
from orchestration.ledger.connection import now_us
from orchestration.ledger.leases import Lease
from orchestration.settings import Settings
from orchestration.times import utc_text

_TABLE_FIRST_S = 2.0
_BATCH_FIRST_S = 30.0
STAGE, LOAD, DEAD_LETTERS = "stage", "load", "dead_letters"

STAGE_OF: dict[State, tuple[str, tuple[Kind, ...]]] = {
    State.PLANNED: (STAGE, ()),
    State.STAGED: (LOAD, (Kind.EVENTS,)),
    State.LOADING: (LOAD, (Kind.EVENTS,)),
    State.LOADED: (DEAD_LETTERS, ()),  # to be committed first, which needs no table
    State.COMMITTED: (DEAD_LETTERS, (Kind.EVENTS, Kind.DEAD_LETTERS)),
}
"""The stage that carries a batch on, and the tables that it needs."""

_IN_A_ROW = 2
"""Batches that fail one after the other, each by itself as it seems, before the table waits.

And failures of one batch, by the table as it seems, before other batches are tried first.
"""


class Circuit:
    """Failures at one stage, as a run meets them; `table` is what it writes to, if it does.

    With `insists` nothing is waited for: somebody is looking, and wants to know.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Engine,
        lease: Lease,
        stage: str,
        table: str | None = None,
        insists: bool = False,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._lease = lease
        self._stage = stage
        self._table = None if table is None else table_name(settings.topic, table)
        self._insists = insists
        self._known = backoffs_now(ledger)
        self._in_a_row = 0
        self._last: BatchError | None = None
        self._failed_now = False

    def check(self) -> None:
        """Raise LoadingPaused while the table is waited for.

        Without a table, StagingPaused when batch after batch fails: it is hardly their fault.
        """
        if self._table is None and self._last is not None and self._in_a_row >= _IN_A_ROW:
            raise StagingPaused(
                f"{self._in_a_row} batches in a row could not be staged, the next run goes on: "
                f"{self._last}"
            )
        waits = open_backoff(self._settings, self._known, self._table)
        if waits is None or (not self._failed_now and (self._insists or _is_due(waits))):
            return
        raise _paused(waits)

    @property
    def fails(self) -> bool:
        """Whether the table has failed when it was last tried."""
        return self._table in self._known

    @property
    def is_open(self) -> bool:
        """Whether the table has failed so often that it is waited for."""
        return open_backoff(self._settings, self._known, self._table) is not None

    def due(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches that do not wait by themselves; what has failed often comes last.

        Else a batch that always fails would be every probe of a table that takes the others.
        """
        waits = {name for name, backoff in self._known.items() if not _is_due(backoff)}
        due = [one for one in batches if self._insists or self._name(one) not in waits]
        return sorted(due, key=self._often_failed)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count what goes wrong inside and is no batch's fault; LoadingPaused when it is open."""
        try:
            yield
        except (ClickHouseAway, ClickHouseRefused) as error:
            if error.remedy not in (Remedy.WAIT, Remedy.REPAIR):
                raise
            if error.next_try_at is None:
                self._table_fails(error)
            waits = open_backoff(self._settings, self._known, self._table)
            if waits is not None:
                raise _paused(waits) from error
            raise

    @contextmanager
    def one(self, batch: Batch) -> Iterator[None]:
        """One try at a batch. An error comes out with the time of the next one, if there is one.

        One that no line of this code has thought of, or that has no name, comes out as
        UnknownTrouble.
        """
        try:
            try:
                yield
            except BatchError as error:
                if type(error) is BatchError:
                    raise UnknownTrouble(str(error)) from error
                raise
            except SQLAlchemyError:
                raise
            except OSError as error:  # only of the lake's files are errors not named elsewhere
                raise LakeTrouble(f"a file of the lake: {error}") from error
            except Exception as error:  # whatever it is, it must not hold up the others for ever
                raise UnknownTrouble(f"{type(error).__name__}: {error}") from error
        except BatchError as error:
            if self._is_of_the_batch(batch, error):
                error.remedy = Remedy.ALONE
            if error.remedy in (Remedy.ALONE, Remedy.UNKNOWN):
                self._batch_fails(batch, error)
            elif isinstance(error, (ClickHouseAway, ClickHouseRefused)) and (
                error.remedy in (Remedy.WAIT, Remedy.REPAIR)
            ):
                self._table_fails(error)
                if error.remedy is Remedy.WAIT:
                    self._note(self._name(batch), error, _another_first)
            raise
        self._went_well(batch)

    def _is_of_the_batch(self, batch: Batch, error: BatchError) -> bool:
        """Whether the table, as it seems, is well: others were loaded since the batch failed."""
        return (
            isinstance(error, ClickHouseAway)
            and error.remedy is Remedy.WAIT
            and self._often_failed(batch) > 0
            and not self.fails
        )

    def _often_failed(self, batch: Batch) -> int:
        known = self._known.get(self._name(batch))
        return known.failures if known and known.failures >= _IN_A_ROW else 0

    def table_works(self) -> None:
        """End what is waited for because of the table."""
        self._forget(self._table)

    def _went_well(self, batch: Batch) -> None:
        self._in_a_row = 0
        self._forget(self._name(batch), self._table)

    def _forget(self, *names: str | None) -> None:
        known = [name for name in names if name is not None and name in self._known]
        if known:
            forget_failures(self._ledger, self._lease, known)
            for name in known:
                del self._known[name]

    def _batch_fails(self, batch: Batch, error: BatchError) -> None:
        longest = self._settings.batch_backoff_max_seconds
        failed = self._note(self._name(batch), error, _doubling(_BATCH_FIRST_S, longest))
        gives_up = error.remedy is Remedy.UNKNOWN
        if not (gives_up and failed.unknown >= self._settings.unknown_error_tries):
            error.next_try_at = failed.next_try_at
        self._in_a_row += 1
        self._last = error
        if self._in_a_row >= _IN_A_ROW and self._table is not None:
            self._table_fails(error, at_once=True)

    def _table_fails(self, error: BatchError, at_once: bool = False) -> None:
        if self._table is None:
            return
        enough = self._settings.load_attempts
        doubling = _doubling(_TABLE_FIRST_S, self._settings.table_backoff_max_seconds)
        failed = self._note(
            self._table,
            error,
            lambda failures: doubling(max(1, failures - enough + 1)),
            enough if at_once or error.remedy is Remedy.REPAIR else 1,
        )
        self._failed_now = True
        if error.remedy in (Remedy.WAIT, Remedy.REPAIR):
            error.next_try_at = failed.next_try_at

    def _note(
        self, name: str, error: BatchError, delay_us: Callable[[int], int], at_least: int = 1
    ) -> Backoff:
        failed = note_failure(self._ledger, self._lease, name, error, delay_us, at_least)
        self._known[name] = failed
        return failed

    def _name(self, batch: Batch) -> str:
        return batch_name(batch.batch_id, self._stage)


def open_backoff(
    settings: Settings, known: Mapping[str, Backoff], table: str | None
) -> Backoff | None:
    """The back-off of a table that has failed often enough in a row to be waited for."""
    backoff = known.get(table or "")
    return backoff if backoff and backoff.failures >= settings.load_attempts else None


def loading_paused(settings: Settings, ledger: Engine) -> list[LoadingPaused]:
    """Why ClickHouse need not be asked now: the tables that are waited for, due or not."""
    return _pauses(settings, backoffs_now(ledger))


def _pauses(settings: Settings, known: Mapping[str, Backoff]) -> list[LoadingPaused]:
    names = (table_name(settings.topic, table) for table in (Kind.EVENTS, Kind.DEAD_LETTERS))
    found = (open_backoff(settings, known, name) for name in names)
    return [_paused(waits) for waits in found if waits is not None]


def trouble_now(settings: Settings, ledger: Engine) -> list[str]:
    """What fails now and is tried again by itself, in words: tables, batches, and lack of room."""
    found = [str(paused) for paused in _pauses(settings, backoffs_now(ledger))]
    found += [f"batch {one.batch_id} {one.text}" for one in failing_batches(settings, ledger)]
    full = why_no_room(settings, ledger, Lake(settings.lake))
    return [*found, f"no more is planned: {full}"] if full else found


@dataclass(frozen=True)
class FailingBatch:
    """A batch that fails at a stage and is tried again by itself; `text` says what to do."""

    batch_id: str
    stage: str
    text: str


def failing_batches(settings: Settings, ledger: Engine) -> list[FailingBatch]:
    """Those of the batches that a worker can carry on, due or not."""
    known = backoffs_now(ledger)
    if not any(name.startswith("batch/") for name in known):
        return []
    found = []
    for batch in unfinished_batches(ledger, *settings.topics):
        stage, _ = STAGE_OF[batch.state]
        if backoff := known.get(batch_name(batch.batch_id, stage)):
            text = (
                f"fails at {stage} since {utc_text(backoff.since)}, {backoff.failures:,} times so "
                f"far: {backoff.error_text}. Next try at {utc_text(backoff.next_try_at)}: mend the "
                "cause (docs/batch-failed.md), then `tidemark batch` tries at once"
            )
            found.append(FailingBatch(batch.batch_id, stage, text))
    return found


def next_try_at(settings: Settings, ledger: Engine, batches: Sequence[Batch]) -> int | None:
    """When the first of these batches may be tried (µs); None when one may be tried now."""
    known = backoffs_now(ledger)
    times = [_waits_until(settings, known, batch) for batch in batches]
    if any(at <= now_us() for at in times):
        return None
    return min(times, default=None)


def _waits_until(settings: Settings, known: Mapping[str, Backoff], batch: Batch) -> int:
    stage, tables = STAGE_OF[batch.state]
    own = known.get(batch_name(batch.batch_id, stage))
    of_tables = (open_backoff(settings, known, table_name(settings.topic, t)) for t in tables)
    return max((each.next_try_at for each in (own, *of_tables) if each is not None), default=0)


def _is_due(backoff: Backoff) -> bool:
    return backoff.next_try_at <= now_us()


def _paused(waits: Backoff) -> LoadingPaused:
    _, _, table = waits.name.rpartition("/")
    error = LoadingPaused(
        f"the table {table} takes nothing since {utc_text(waits.since)}, {waits.failures:,} "
        f"failures in a row: {waits.error_text}. What is staged waits; next try at "
        f"{utc_text(waits.next_try_at)}"
    )
    error.code, error.next_try_at = waits.error_code, waits.next_try_at
    return error


def _another_first(failures: int) -> int:
    """The wait (µs) of a batch that perhaps is why the table fails: another is probed before it.

    It does not grow while no other is loaded: most likely the table is in trouble.
    """
    return 0 if failures < _IN_A_ROW else int(_BATCH_FIRST_S * 1_000_000)


def _doubling(first_s: float, longest_s: float) -> Callable[[int], int]:
    """The wait (µs) after so many failures in a row, spread so that no two come together."""

    def delay_us(failures: int) -> int:
        seconds = min(longest_s, first_s * 2.0 ** min(failures - 1, 30))
        return int(seconds * random.uniform(0.5, 1.0) * 1_000_000)

    return delay_us
