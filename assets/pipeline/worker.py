"""The worker: what carries batches through their stages, from whatever state it finds them in.

    stage_batches      staging.py  finishes planned batches, then plans (lanes.py) and stages on
    load_batches       loading.py  loads, proves and commits what is staged
    load_dead_letters  loading.py  the same for rejected records
    retry_batch …      waiting.py  what a person decides of batches that wait for one

Each takes the topics by urgency: the main one first, what is historical last and for a bounded
time. What is wrong with a lane, or with one batch, holds up no other; what is waited for, and how
long, is the circuit's (circuit.py).

Each holds the lease while it works: one for all topics, because they share the duplicate index.
Every stage of every batch is an attempt in the ledger before it begins. A crash anywhere leaves a
state from which the next worker goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from assets.pipeline.batch import Batch
from assets.pipeline.circuit import Circuit
from assets.pipeline.clickhouse import connect, make_tables
from assets.pipeline.codes import Remedy
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.errors import (
    ANSWERED,
    BatchError,
    LaneTrouble,
    LeaseHeld,
    LedgerBehind,
    LoadingPaused,
    StagingPaused,
)
from assets.pipeline.key_copies import KeyCopies
from assets.pipeline.key_upkeep import Window, open_index, window_now
from assets.pipeline.lake import Lake
from assets.pipeline.prove import loaded_keys
from assets.pipeline.topic import Topic, topics_of
from orchestration.ledger import batches as ledger_batches
from orchestration.ledger import redrives as ledger_redrives
from orchestration.ledger.attempts import note_killed, open_attempts
from orchestration.ledger.imports import lease_of_imports
from orchestration.ledger.leases import (
    Lease,
    ask_for_turn,
    have_same_holder,
    held_lease,
    take_turn,
)
from orchestration.settings import Settings
from orchestration.times import utc_text

if TYPE_CHECKING:
    from assets.pipeline.import_file import ImportFile

_TURN_PATIENCE_S = 600.0
_TURN_POLL_S = 0.2
"""How long a worker waits for an import to come to the end of a batch, and how often it looks."""


@dataclass
class Worker:
    """What the stages need. `say` gets one line for each important step.

    With `insists` it tries at once what is being waited for: a person has asked for it. With `only`
    it stages these topics alone, and loads what is staged of all. With `gives_way` it is an import,
    and lets others go first. `files` are those of imports, by topic, as far as it has opened them.
    `share`: it is one of so many that share the memory which staging may take. `stagers` is the
    most memory in bytes of each process that has staged for it, by host and pid.
    """

    settings: Settings
    ledger: Engine
    run_id: str
    say: Callable[[str], None] = print
    insists: bool = False
    only: frozenset[str] = frozenset()
    gives_way: bool = False
    files: dict[str, ImportFile] = field(default_factory=dict)
    share: int = 1
    stagers: dict[str, int] = field(default_factory=dict)

    def stages(self, topic: str) -> bool:
        """Whether it stages batches of a topic."""
        return not self.only or topic in self.only

    @cached_property
    def topics(self) -> dict[str, Topic]:
        """The topics' metadata, the most urgent first."""
        return topics_of(self.settings.kafka_client, self.settings.topics_by_urgency)

    def topic_of(self, batch: Batch) -> Topic:
        """The metadata of a batch's topic."""
        return self.topics.get(batch.topic) or Topic(self.settings.kafka_client, batch.topic)

    def unfinished(self) -> list[Batch]:
        """What a worker can carry on: the most urgent topic's first, and of each the oldest."""
        urgency = self.settings.topics_by_urgency
        batches = ledger_batches.unfinished_batches(self.ledger, *urgency)
        places = {topic: place for place, topic in enumerate(urgency)}
        return sorted(batches, key=lambda batch: places.get(batch.topic, len(places)))

    def old_batches(self, redrive: Batch) -> list[Batch]:
        """The batches whose dead letters a redrive carries."""
        ids = ledger_redrives.old_batches_of(self.ledger, [redrive.batch_id])
        return [ledger_batches.read_batch(self.ledger, batch_id) for batch_id in ids]

    @cached_property
    def lake(self) -> Lake:
        """Where staged files go."""
        return Lake(self.settings.lake)

    def index_for(self, batch: Batch, *, only_looks: bool = False) -> SeenKeys:
        """What the records of a batch are compared with, to find duplicates.

        Who only looks writes nothing, and may find fewer.
        """
        return open_index(
            self.ledger,
            self.lake,
            batch,
            self.settings.duplicate_window_days,
            self.say,
            self.loaded_keys,
            only_looks=only_looks,
        )

    def window_for(self, batch: Batch) -> Window:
        """The same for another process to open."""
        days = self.settings.duplicate_window_days
        return window_now(self.ledger, self.lake, batch, days, self.say, self.loaded_keys)

    @cached_property
    def key_copies(self) -> KeyCopies:
        """Where another process finds key files of a lake that is not on this machine."""
        return KeyCopies(self.settings)

    def loaded_keys(self, batch: Batch) -> pa.Table:
        """The keys of a batch that ClickHouse has, of which the lake has let go."""
        return loaded_keys(self.clickhouse, self.settings.clickhouse_database, batch)

    @cached_property
    def clickhouse(self) -> Client:
        """ClickHouse, with the tables in place."""
        settings = self.settings
        client = connect(
            settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
        )
        make_tables(client, settings.clickhouse_database)
        return client

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """The lease on all topics, for the length of a with-block.

        While an import has it, a turn is asked for and waited for: that is over with its batch.
        """
        with ExitStack() as stack:
            lease = self._take_lease(stack)
            killed = note_killed(self.ledger, lease, *self.settings.topics)
            if killed:
                self.say(f"{killed:,} attempts of workers before this one never ended")
            yield lease

    @property
    def lease_name(self) -> str:
        """The name of the lease on all topics."""
        return f"topic/{self.settings.topic}"

    @property
    def import_lease_name(self) -> str:
        """The name of the lease that an import has from its beginning to its end."""
        return lease_of_imports(self.settings.topic)

    def _take_lease(self, stack: ExitStack) -> Lease:
        ledger, name = self.ledger, self.lease_name
        until = time.monotonic() + _TURN_PATIENCE_S
        while True:
            try:
                lease = stack.enter_context(held_lease(ledger, name, self.settings.lease_seconds))
            except LeaseHeld as error:
                of_import = have_same_holder(ledger, name, self.import_lease_name)
                if self.gives_way or not of_import or time.monotonic() > until:
                    raise LeaseHeld(f"{error}{self._what_is_under_way()}") from error
                ask_for_turn(ledger, name)
                time.sleep(_TURN_POLL_S)
                continue
            if not self.gives_way:
                take_turn(ledger, name)
            return lease

    def _what_is_under_way(self) -> str:
        under_way = open_attempts(self.ledger, *self.settings.topics)
        told = "; ".join(
            f"run {one.run_id} is at {one.stage} of batch {one.batch_id} since "
            f"{utc_text(one.started_at)}"
            for one in under_way
        )
        return f": {told}" if told else ""

    def circuit(self, lease: Lease, stage: str, table: str | None = None) -> Circuit:
        """What is known of failures at a stage."""
        return Circuit(self.settings, self.ledger, lease, stage, table, self.insists)


class PutAside:
    """Errors of single batches and lanes, kept until the others are through.

    What is worth another try at once is not kept but raised: it would meet the others as well. So
    is a ledger that is not the right one. Trouble with lanes, what ClickHouse or Kafka say of a
    single batch, and what is waited for goes into `held`, where it is given.
    """

    def __init__(self, held: list[BatchError] | None = None) -> None:
        self._first: BatchError | None = None
        self._held = held

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Keep what is raised inside, unless it concerns the others, too."""
        try:
            yield
        except BatchError as error:
            concerns_all = error.remedy in (Remedy.WAIT, Remedy.REPAIR)
            if isinstance(error, LedgerBehind) or (
                concerns_all and not isinstance(error, StagingPaused)
            ):
                raise
            if isinstance(error, (LaneTrouble, *ANSWERED)):
                self.keep(error)
            else:
                self._first = self._first or error

    @contextmanager
    def pauses(self) -> Iterator[None]:
        """Keep a pause of loading."""
        try:
            yield
        except LoadingPaused as paused:
            self.keep(paused)

    def keep(self, error: BatchError) -> None:
        """Put an error aside, into `held` where that is given: what can be loaded is, first."""
        if self._held is None:
            self._first = self._first or error
        elif str(error) not in map(str, self._held):
            self._held.append(error)

    def raise_first(self) -> None:
        """Raise the first error that was kept."""
        if self._first is not None:
            raise self._first
