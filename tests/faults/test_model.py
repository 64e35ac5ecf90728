"""A model of exactly once, and workers that are stepped, killed and resumed in any order.

The model is two lists: what was put into the topic, and what retention took. Hypothesis chooses
what happens next and looks, after each step, that no record is in ClickHouse twice; at the end a
worker whom nothing disturbs carries on, and each record must have come out once, in the way the
model says. `TIDEMARK_TESTS_MODEL_EXAMPLES=2000` looks for longer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from assets.pipeline.batch import WAITING, Balance, Batch, Kind, State
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.errors import BatchError
from assets.pipeline.failpoints import POINTS, STAGERS_POINTS
from assets.pipeline.waiting import accept_gap, release_batch, restage_batch, retry_batch
from orchestration.ledger.batches import planned_ends
from orchestration.ledger.gaps import all_gaps
from orchestration.ledger.tables import leases
from tests.faults.stepped import ENDED, Log, Stepped, step_through_failpoints
from tests.records import value_of
from tests.stack import Place, Stack

SEARCHES = os.environ.get("TIDEMARK_TESTS_MODEL_EXAMPLES")
EXAMPLES = int(SEARCHES or 25)
PHASES = [Phase.generate, *([Phase.shrink] if SEARCHES else [])]  # minutes, when it fails
PARTITIONS = 2
ROUNDS = 12
"""Workers after which whatever was begun must have come to an end."""

BROKEN = b'{"v":1,"uuid":"cut off'
NOT_EVENTS = {"broken": BROKEN, "empty": b"", "tombstone": None}
KINDS = ["new", "new", "new", "again", "marker", *NOT_EVENTS]

IN_DOUBT = ["after-stage", "before-insert", "before-check", "before-send", "after-send"]
points = st.sampled_from([ENDED, *IN_DOUBT * 4, *POINTS, *STAGERS_POINTS * 2])
partitions = st.integers(0, PARTITIONS - 1)
arrivals = st.lists(st.tuples(partitions, st.sampled_from(KINDS)), max_size=9)
losses = st.sampled_from(["", "", "before", "after"])
DETAILS = {
    "work": st.tuples(arrivals, st.booleans(), losses, points, st.booleans()),
    "overtake": st.tuples(st.booleans(), points, st.booleans()),
    "retain_less": st.tuples(partitions, st.integers(1, 9)),
    "damage_a_staged_file": st.tuples(st.integers(0, 9)),
    "person": st.tuples(st.booleans()),
}
names = st.sampled_from([*["work"] * 5, *["overtake"] * 4, *DETAILS])
steps = st.lists(
    names.flatmap(lambda name: st.tuples(st.just(name), DETAILS[name])), min_size=8, max_size=14
)

_names = itertools.count()


class Pipeline:
    """One topic, one ledger, one lake, one table, and up to two workers at a time."""

    def __init__(self, base: Stack, ledger_url: str, most: int, stagers: int) -> None:
        """An empty topic, which a worker has seen: whatever comes has to be loaded."""
        name = f"model-{next(_names)}"
        self.log = Log(name, f"id-of-{name}", PARTITIONS)
        self.numbers: dict[Place, int | None] = {}  # what stands where; None is not an event
        self.next_number = 0
        self.workers: list[Stepped] = []
        self.runs = itertools.count()
        settings = base.settings.model_copy(
            update={
                "home": base.settings.home / name,
                "topic": name,
                "batch_max_records": most,
                "stagers": stagers,
                "lease_seconds": 3600,
                "table_backoff_max_seconds": 1e-6,
                "batch_backoff_max_seconds": 1e-6,
                "hold_over_records": 1,
                "hold_over_percent": 50.0,
                "ledger_url": ledger_url,
            }
        )
        self.stack = Stack(settings)
        vars(self.stack).update(client=base.client)
        self._new_worker().finish()

    # What may happen.

    def retain_less(self, partition: int, offsets: int) -> None:
        """Retention takes records, but none whose staged file may yet have to be made again."""
        needed = [
            range_.start
            for batch in self.stack.batches()
            if batch.state in (State.STAGED, State.LOADING, State.HELD)
            for range_ in batch.ranges
            if range_.partition == partition
        ]
        low, high = self.log.low[partition], len(self.log.records[partition])
        self.log.low[partition] = max(low, min([low + offsets, high, *needed]))

    def work(
        self,
        arrivals: list[tuple[int, str]],
        forgets: bool,
        loses: str,
        point: str,
        pauses: bool,
    ) -> None:
        """Records arrive; a new worker comes to a point, where it is killed or pauses."""
        self._arrive(arrivals)
        if forgets:
            self._forget_tokens()
        if len(self.workers) == 2:
            self._end(self.workers[0])
        self._start(loses)
        self._go_on(self.workers[-1], point, pauses)

    def overtake(self, forgets: bool, point: str, pauses: bool) -> None:
        """Another one does all the work of one that is paused, which then goes on."""
        if self.workers:
            paused = self.workers[0]
            self._start()
            self._go_on(self.workers[-1], ENDED)
            if forgets:
                self._forget_tokens()
            self._go_on(paused, point, pauses)

    def damage_a_staged_file(self, which: int) -> None:
        """A file that is not loaded yet is cut short, while Kafka still has the records."""
        files = [
            self.stack.lake_file(file.path)
            for batch in self.stack.batches()
            if batch.state is State.STAGED and batch.staged
            if all(range_.start >= self.log.low[range_.partition] for range_ in batch.ranges)
            for file in batch.staged.files
            if file.kind is Kind.EVENTS
        ]
        if files:
            file = sorted(files)[which % len(files)]
            file.write_bytes(file.read_bytes()[:-5])

    def person(self, restages: bool) -> None:
        """Somebody looks at what waits, accepts what is lost, and releases what is held."""
        self._decide(restages)

    # What must hold.

    def prove_nothing_doubled(self) -> None:
        """No place and no uuid is in ClickHouse twice, at any moment."""
        seen = self.stack.rows(
            "SELECT count(), uniqExact(_partition, _offset), uniqExact(uuid) "
            "FROM {database}.events WHERE _topic = {topic:String}",
            topic=self.log.name,
        )
        assert len(set(seen[0])) == 1, seen

    def carry_on(self) -> None:
        """All workers die; others come to an end undisturbed."""
        while self.workers:
            self._end(self.workers[0])
        for _ in range(ROUNDS):
            self._start()
            self.workers.pop().finish()
            if not self._decide() and self._is_done():
                return

    def prove(self) -> None:
        """Each record came out once, in the way it had to, and the balance says the same."""
        batches = self.stack.batches()
        assert {batch.state for batch in batches} <= {State.COMMITTED}
        lost = self._lost(batches)
        for partition, records in enumerate(self.log.records):
            ends = sorted(r for batch in batches for r in batch.ranges if r.partition == partition)
            assert [*ends, None][0] is None or ends[0].start == 0
            assert (ends[-1].end if ends else 0) == len(records)
            assert all(one.end == other.start for one, other in pairwise(ends))

        kept = {place: number for place, number in self.numbers.items() if place not in lost}
        account = self.stack.account()
        assert Counter(kept[place] for place in account.events) == Counter(
            {number for number in kept.values() if number is not None}
        )
        tombstones = {place for place in kept if self._value(place) is None}
        assert account.places == Counter(kept.keys() - tombstones), "lost or doubled"
        assert {self._value(place) for place in account.dead_letters} <= {BROKEN, b""}

        total = sum((batch.staged.balance for batch in batches if batch.staged), Balance())
        offsets = sum(map(len, self.log.records))
        assert total == Balance(
            ok=len(account.events),
            rejected=len(account.dead_letters),
            duplicate=len(account.duplicates),
            tombstone=len(tombstones),
            absent=offsets - len(kept) - len(lost),
            lost=len(lost),
        )

    def close(self) -> None:
        """Nothing of it runs any more."""
        for worker in self.workers:
            worker.kill()
        self.stack.ledger.dispose()

    # How it is seen.

    def _value(self, place: Place) -> bytes | None:
        record = self.log.records[place[0]][place[1]]
        return record.value if record else None

    def _arrive(self, arrivals: list[tuple[int, str]]) -> None:
        for partition, kind in arrivals:
            offset = len(self.log.records[partition])
            if kind == "marker":
                self.log.append(partition, None, marker=True)
            elif kind in NOT_EVENTS:
                self.log.append(partition, NOT_EVENTS[kind])
                self.numbers[partition, offset] = None
            else:
                number = self.next_number if kind == "new" else max(0, self.next_number - 3)
                self.log.append(partition, value_of(number))
                self.numbers[partition, offset] = number
                self.next_number = max(self.next_number, number + 1)

    def _forget_tokens(self) -> None:
        """ClickHouse forgets which inserts it has seen, by one that nobody repeats.

        Not while an insert is on its way: that one has asked for the lease already, and only its
        token is left to stop it.
        """
        if any("before-send" in worker.points for worker in self.workers):
            return
        for table in ("events", "dead_letters"):
            name = f"{self.stack.database}.{table}"
            change = f"ALTER TABLE {name} MODIFY SETTING non_replicated_deduplication_window"
            self.stack.client.command(f"{change} = 1")
            self.stack.client.command(
                f"INSERT INTO {name} (_batch_id) VALUES ('other')",
                settings={"insert_deduplication_token": f"other-{next(_names)}"},
            )
            self.stack.client.command(f"{change} = 1000")

    def _start(self, loses: str = "") -> None:
        """Whoever has the lease has held it for too long; a new worker may take it."""
        with self.stack.ledger.begin() as connection:
            connection.execute(update(leases).values(expires_at=0))
        self.workers.append(self._new_worker())
        self.workers[-1].loses_next_answer = loses

    def _go_on(self, worker: Stepped, point: str, pauses: bool = False) -> None:
        """Let it go on until it comes to the point, or to its end."""
        while not worker.ended and worker.step() != point:
            pass
        if worker.ended or not pauses:
            self._end(worker)

    def _end(self, worker: Stepped) -> None:
        worker.kill()
        self.workers.remove(worker)

    def _new_worker(self) -> Stepped:
        run = f"run-{next(self.runs)}"
        return Stepped(self.stack.settings, self.log, self.stack.client, run).start()

    def _decide(self, restages: bool = False) -> bool:
        """Whether a batch that waited for a person does not wait any more."""
        worker = self.stack.worker("person")
        vars(worker).update(topics={self.log.name: self.log}, clickhouse=self.stack.client)
        gaps = [gap for gap in all_gaps(self.stack.ledger, self.log.name) if not gap.decision]
        for gap in gaps:
            with contextlib.suppress(BatchError):
                accept_gap(worker, gap.gap_id, "retention was too short")
        waiting = [batch for batch in self.stack.batches() if batch.state in WAITING]
        for batch in waiting:
            with contextlib.suppress(BatchError):  # a worker is at it, or Kafka has it no more
                if batch.state is not State.HELD:
                    retry_batch(worker, batch.batch_id)
                elif restages:
                    restage_batch(worker, batch.batch_id)
                else:
                    release_batch(worker, batch.batch_id)
        return bool(gaps or waiting)

    def _is_done(self) -> bool:
        planned = planned_ends(self.stack.ledger, "cluster", self.log.topic_id)
        return planned == {
            partition: len(records) for partition, records in enumerate(self.log.records) if records
        } and all(batch.state is State.COMMITTED for batch in self.stack.batches())

    def _lost(self, batches: list[Batch]) -> set[Place]:
        """Places that a person has given up; all of them are below what retention has left."""
        lost = set()
        for batch in batches:
            read = {r.partition: r.start for r in batch.readable}
            for range_ in batch.ranges:
                for offset in range(range_.start, read.get(range_.partition, range_.end)):
                    assert offset < self.log.low[range_.partition], "given up without need"
                    lost.add((range_.partition, offset))
        return lost


@pytest.mark.matrix("anything, in any order")
@pytest.mark.parametrize(("ledger", "share"), [("sqlite", 1), ("postgresql", 5)])
def test_any_order_of_steps_kills_and_faults(
    ledger: str,
    share: int,
    new_stack: Callable[..., Stack],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever happens, and in whatever order: lost 0, doubled 0, and the balance closes."""
    step_through_failpoints(monkeypatch)
    base = new_stack(kafka_bootstrap_servers="127.0.0.1:1")  # never asked
    make_tables(base.client, base.database)
    new_ledger = request.getfixturevalue("postgresql") if ledger == "postgresql" else str

    @settings(
        max_examples=max(1, EXAMPLES // share),
        derandomize=SEARCHES is None,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    @given(most=st.integers(1, 9), stagers=st.sampled_from([1, PARTITIONS]), happens=steps)
    def balances(most: int, stagers: int, happens: list[tuple[str, tuple[Any, ...]]]) -> None:
        pipeline = Pipeline(base, new_ledger(), most, stagers)
        try:
            for name, details in happens:
                getattr(pipeline, name)(*details)
                pipeline.prove_nothing_doubled()
            pipeline.carry_on()
            pipeline.prove()
        finally:
            pipeline.close()

    balances()
