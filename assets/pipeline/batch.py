"""The batch and what flows along with it: ranges, balance, fingerprints, staged files.

A batch's states, and the stage that moves it on:

    planned ──stage──▶ staged ──load──▶ loading ──prove──▶ loaded ──commit──▶ committed
       │  ▲                              │   │
       │  └── staged file damaged ───────┘   ├─▶ suspect (ClickHouse holds neither nothing nor all)
       ├─▶ gap (Kafka's or the file's loss)  └─▶ failed (its data is refused, or tries are used up)
       ├─▶ held (staged, but too much of it was rejected) ──release──▶ staged
       └─▶ failed

    gap, suspect, failed ──given up, a redrive only──▶ superseded (others may carry its letters)
    planned, staged, held, gap, suspect, failed ──discarded, an import only──▶ superseded

`gap`, `held`, `suspect` and `failed` wait for a person, who looks and says `tidemark retry` or
`tidemark release`; other batches go on. What a crash leaves is the state before it: the next worker
takes the batch up from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum


class State(StrEnum):
    """How far a batch has come."""

    PLANNED = "planned"
    STAGED = "staged"
    LOADING = "loading"
    LOADED = "loaded"
    COMMITTED = "committed"
    GAP = "gap"
    HELD = "held"
    SUSPECT = "suspect"
    FAILED = "failed"
    SUPERSEDED = "superseded"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.PLANNED: frozenset({State.STAGED, State.HELD, State.GAP, State.FAILED, State.SUPERSEDED}),
    State.STAGED: frozenset({State.LOADING, State.SUPERSEDED}),
    State.LOADING: frozenset(
        {State.LOADING, State.LOADED, State.PLANNED, State.GAP, State.SUSPECT, State.FAILED}
    ),
    State.LOADED: frozenset({State.COMMITTED, State.GAP, State.SUSPECT}),
    State.COMMITTED: frozenset({State.GAP, State.SUSPECT}),
    # From where it was found: before it was staged, or when a staged file was missed.
    State.GAP: frozenset({State.PLANNED, State.LOADING, State.FAILED, State.SUPERSEDED}),
    # Released as it is, or staged again: then it may have to be held again.
    State.HELD: frozenset({State.STAGED, State.HELD, State.SUPERSEDED}),
    State.SUSPECT: frozenset({State.LOADING, State.SUPERSEDED}),
    # From where it failed: before it was staged, or after.
    State.FAILED: frozenset({State.PLANNED, State.LOADING, State.SUPERSEDED}),
    State.SUPERSEDED: frozenset(),
}
"""Which state may follow which; the ledger refuses anything else."""

UNFINISHED = (State.PLANNED, State.STAGED, State.LOADING, State.LOADED)
"""States from which a worker carries on by itself."""

LOADED = (State.LOADED, State.COMMITTED)
"""States in which a batch's events are proved to be in ClickHouse."""

WAITING = (State.GAP, State.HELD, State.SUSPECT, State.FAILED)
"""States in which a batch waits for a person."""


IMPORT_PREFIX = "import:"
"""How the topic of an imported file is called; no topic of Kafka may have a colon in its name."""


class Kind(StrEnum):
    """The files of a batch in the lake; events and dead letters are loaded into tables too."""

    EVENTS = "events"
    DEAD_LETTERS = "dead_letters"
    DUPLICATES = "duplicates"


@dataclass(frozen=True, order=True)
class Range:
    """Offsets `[start, end)` of one partition."""

    partition: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.partition}:[{self.start},{self.end})"


@dataclass(frozen=True)
class Balance:
    """How the offsets of a range, or of a batch, came out. All are counts.

    `absent` are offsets that hold no record: transaction markers, compacted records. `redriven`
    are those of the rejected that have become events since, by a batch of their own. `lost` are
    offsets whose records are gone for good, as a person has accepted.
    """

    ok: int = 0
    rejected: int = 0
    duplicate: int = 0
    tombstone: int = 0
    absent: int = 0
    redriven: int = 0
    lost: int = 0

    def __add__(self, other: Balance) -> Balance:
        return Balance(
            self.ok + other.ok,
            self.rejected + other.rejected,
            self.duplicate + other.duplicate,
            self.tombstone + other.tombstone,
            self.absent + other.absent,
            self.redriven + other.redriven,
            self.lost + other.lost,
        )

    @property
    def delivered(self) -> int:
        """Records that Kafka delivered."""
        return self.ok + self.rejected + self.duplicate + self.tombstone

    @property
    def offsets(self) -> int:
        """Offsets accounted for: end − start, when the balance closes."""
        return self.delivered + self.absent + self.lost

    def __str__(self) -> str:
        """The equation, which closes for whoever adds it up."""
        redriven = f" (of these {self.redriven:,} redriven)" if self.redriven else ""
        return (
            f"{self.offsets:,} offsets = {self.ok:,} ok + {self.rejected:,} rejected{redriven} + "
            f"{self.duplicate:,} duplicate + {self.tombstone:,} tombstone + "
            f"{self.absent:,} absent + {self.lost:,} lost"
        )


@dataclass(frozen=True)
class Fingerprint:
    """What the rows of one partition of a batch must add up to in ClickHouse.

    Sums are of offsets and of their squares, both modulo 2**64.
    """

    partition: int
    rows: int
    min_offset: int
    max_offset: int
    offset_sum: int
    offset_square_sum: int


@dataclass(frozen=True)
class StagedFile:
    """One immutable Parquet file. `path` is below the lake's root.

    `let_go_at` (µs) is when housekeeping let go of it, and of the rows of dead letters.
    """

    kind: Kind
    path: str
    rows: int
    bytes: int
    sha256: str
    let_go_at: int | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds that a stage of a batch took: of the clock, and of the worker's processor."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class KeyFile:
    """A file of the duplicate index. `path` is below the lake's root."""

    path: str
    arrival_date: date
    rows: int


@dataclass(frozen=True)
class Staged:
    """What staging a batch gave, registered in one transaction.

    `reasons` says how many records were rejected for each reason.
    """

    files: tuple[StagedFile, ...]
    balances: dict[int, Balance]
    fingerprints: dict[Kind, tuple[Fingerprint, ...]]
    bytes_read: int
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def balance(self) -> Balance:
        """The balance of the whole batch."""
        return sum(self.balances.values(), Balance())

    def file(self, kind: Kind) -> StagedFile | None:
        """The file of that kind, if the batch has one, be it let go of."""
        return next((file for file in self.files if file.kind == kind), None)

    def has_let_go(self, kind: Kind) -> bool:
        """Whether there was such a file, and housekeeping let go of it."""
        file = self.file(kind)
        return file is not None and file.let_go_at is not None


@dataclass(frozen=True)
class Making:
    """Files of a batch as one making gave them, and what ClickHouse must hold of them.

    `generation` is that of their rows, `code_version` that of the code which made them.
    """

    files: tuple[StagedFile, ...]
    fingerprints: Mapping[Kind, tuple[Fingerprint, ...]]
    generation: int
    code_version: str


@dataclass(frozen=True)
class Batch:
    """A batch as the ledger knows it. Times are µs since 1970.

    `generation` is 0 for files as they were first staged; else which making anew of its arrival
    date's files gave them.

    A redrive is a batch without ranges: it carries `letters`, so many dead letters of batches
    before it, each under its own offset. Its balance has what became of them as `ok` and
    `duplicate`; what was rejected once more stays in the balance of its old batch alone.
    """

    batch_id: str
    topic: str
    cluster_id: str
    topic_id: str
    arrival_date: date
    generation: int
    code_version: str
    run_id: str
    planned_at: int
    ranges: tuple[Range, ...]
    state: State = State.PLANNED
    staged_at: int | None = None
    loaded_at: int | None = None
    dead_letters_loaded_at: int | None = None
    committed_at: int | None = None
    retries: int = 0
    note: str = ""
    skips: Mapping[int, int] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict, compare=False)
    staged: Staged | None = field(default=None, compare=False)
    letters: int = 0
    rows_let_go_at: int | None = None  # housekeeping has dropped its date of `events`

    @property
    def is_redrive(self) -> bool:
        """Whether it tries dead letters again, instead of reading offsets of Kafka."""
        return self.letters > 0

    @property
    def is_import(self) -> bool:
        """Whether its records stand in a file that was imported, and not in Kafka."""
        return self.topic.startswith(IMPORT_PREFIX)

    @property
    def readable(self) -> tuple[Range, ...]:
        """The ranges without what a person has accepted as lost."""
        return tuple(
            Range(r.partition, min(max(r.start, self.skips.get(r.partition, 0)), r.end), r.end)
            for r in self.ranges
        )

    @property
    def offsets(self) -> int:
        """How many offsets the batch spans."""
        return sum(len(range_) for range_ in self.ranges)


def batch_id(cluster_id: str, topic_id: str, ranges: tuple[Range, ...], generation: int) -> str:
    """The name of a batch: the same ranges of the same topic always give the same one."""
    spelled = ",".join(str(range_) for range_ in sorted(ranges))
    text = f"{cluster_id}/{topic_id}/{spelled}/{generation}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
