"""The demo's account: the same events counted at every station, and whether it all balances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.pipeline.batch import Balance, Batch, Kind
from assets.pipeline.clickhouse import connect
from assets.pipeline.prove import Proof, compare, describe_difference, read_fingerprints
from assets.pipeline.topic import topics_of
from orchestration.demo.sending import Sent
from orchestration.demo.visitors import DemoEvent
from orchestration.ledger.batches import all_batches
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings
from orchestration.webserver import RunTimes, run_times


@dataclass(frozen=True)
class Account:
    """Counts at each station. `loaded` and `dead_letters` are counted in ClickHouse itself."""

    sent: Sent
    distinct: int
    in_kafka: int
    batches: tuple[Batch, ...]
    runs: dict[str, RunTimes]
    loaded: int
    dead_letters: int
    same_uuids: bool
    unproved: tuple[str, ...]
    by_event: tuple[tuple[Any, ...], ...]
    by_event_in_lake: tuple[tuple[Any, ...], ...]

    @property
    def balance(self) -> Balance:
        """All batches together."""
        return sum((batch.staged.balance for batch in self.batches if batch.staged), Balance())

    def problems(self) -> tuple[str, ...]:
        """What does not balance, in words; empty when everything does."""
        balance = self.balance
        expected = [
            ("events acknowledged", self.sent.acknowledged, "sent", self.sent.taken),
            ("offsets in batches", balance.offsets, "offsets in Kafka", self.in_kafka),
            ("rows in ClickHouse", self.loaded, "rows staged", balance.ok),
            ("rows in ClickHouse", self.loaded, "distinct events sent", self.distinct),
            ("duplicates", balance.duplicate, "events sent twice", self.sent.taken - self.distinct),
            ("dead letters in ClickHouse", self.dead_letters, "rejected", balance.rejected),
        ]
        found = [
            f"{name}: {one:,}, but {other_name}: {other:,}"
            for name, one, other_name, other in expected
            if one != other
        ]
        if not self.same_uuids:
            found.append("the uuids in ClickHouse are not the uuids that were sent")
        if self.by_event != self.by_event_in_lake:
            found.append("ClickHouse and the lake count different events")
        return (*found, *self.unproved)


def take_account(settings: Settings, sent: Sent, events: Sequence[DemoEvent]) -> Account:
    """Count everything, each at its own place."""
    database = settings.clickhouse_database
    client = connect(
        settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
    )
    batches = all_batches(open_ledger(settings.ledger), *settings.topics)

    unproved = []
    for batch in batches:
        if batch.staged is None:
            unproved.append(f"batch {batch.batch_id} is {batch.state}, not loaded")
            continue
        for kind in (Kind.EVENTS, Kind.DEAD_LETTERS):
            staged = batch.staged.fingerprints.get(kind, ())
            found = read_fingerprints(client, database, kind.value, batch.batch_id)
            if compare(staged, found) is not Proof.ALL:
                unproved.append(
                    f"batch {batch.batch_id}, {kind}: {describe_difference(staged, found)}"
                )

    uuids = client.query(f"SELECT uuid FROM {database}.events").result_columns
    return Account(
        sent=sent,
        distinct=len(events),
        in_kafka=records_in_kafka(settings),
        batches=tuple(batches),
        runs={batch.run_id: run_times(settings.dagster_address, batch.run_id) for batch in batches},
        loaded=len(uuids[0]) if uuids else 0,
        dead_letters=int(str(client.command(f"SELECT count() FROM {database}.dead_letters"))),
        same_uuids=sorted(uuids[0] if uuids else ()) == sorted(event.uuid for event in events),
        unproved=tuple(unproved),
        by_event=_rows(
            client.query(
                "SELECT event, count(), uniqExact(distinct_id), uniqExact(session_id) "
                f"FROM {database}.events GROUP BY event ORDER BY count() DESC, event"
            ).result_rows
        ),
        by_event_in_lake=_count_in_lake(settings.lake),
    )


def records_in_kafka(settings: Settings) -> int:
    """Offsets that all topics hold now."""
    total = 0
    for topic in topics_of(settings.kafka_client, settings.topics).values():
        partitions = range(topic.identity().partitions)
        lows = topic.lows(partitions)
        total += sum(end - lows[at] for at, end in topic.highs(partitions).items())
    return total


def _count_in_lake(lake: str) -> tuple[tuple[Any, ...], ...]:
    import duckdb

    files = sorted(str(file) for file in Path(lake, "events").rglob("*.parquet"))
    if not files:
        return ()
    return _rows(
        duckdb.connect()
        .execute(
            """
            SELECT event, count(*), count(DISTINCT distinct_id), count(DISTINCT session_id)
            FROM read_parquet($files, hive_partitioning = true)
            GROUP BY event ORDER BY count(*) DESC, event
            """,
            {"files": files},
        )
        .fetchall()
    )


def _rows(found: Iterable[Iterable[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in found)
