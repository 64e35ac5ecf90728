"""Swap: a date's partition of one table takes the place of that of another, now or never.

    source ─hard links─▶ events_swap_… , proved ─the lease is asked─▶ REPLACE PARTITION ─▶ table
                              └─ dropped: when it is done, and by whoever comes next

A command may outlive its worker: ClickHouse has it queued or running when the worker is killed, or
a paused worker sends it when it wakes. By then batches may be loaded that it would take away. So
partitions move by way of a copy with a name of its own, and before anything is inserted into a date
whose rebuild is at its swap, or of which housekeeping let go, the copies of that date are dropped.
That waits for a command that is running; one that comes later finds no table and is refused.

What a crash leaves: a copy, of which the next rebuild, `back` or `cancel` of the date, the next
load into it, or housekeeping lets go. Invariant: nothing of a date is inserted into `events` while
a copy is there that may take its place, but what holds the lease that the copy's maker has lost.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from hashlib import blake2b
from uuid import uuid4

from assets.pipeline.clickhouse import known_settings, named_errors
from assets.pipeline.errors import ProofFailed
from assets.pipeline.failpoints import failpoint
from assets.pipeline.worker import Worker
from orchestration.ledger.leases import Lease, assert_held
from orchestration.ledger.let_go import are_rows_let_go
from orchestration.ledger.rebuilds import MOVING, last_rebuild

_ROWS_BY_BATCH = """
SELECT _batch_id, count() FROM {database:Identifier}.{table:Identifier}
WHERE arrival_date = {day:Date} GROUP BY _batch_id
"""
_COPIES = """
SELECT name FROM system.tables
WHERE database = {database:String} AND startsWith(name, {copies:String})
"""

_HOWEVER_LARGE = {"max_table_size_to_drop": "0", "max_partition_size_to_drop": "0"}
"""A server refuses to let go of more than 50 GB unless it is told so; a date may be larger."""


def take_place(
    worker: Worker,
    topics: Lease,
    source: str,
    table: str,
    day: date,
    *,
    point: str,
    may_be_empty: bool = False,
    prove: Callable[[str], None] = lambda copy: None,
) -> None:
    """Let a date of `table` be what it is in `source`, under the topics' lease.

    `prove` is given the copy, which nobody changes any more, and raises unless it may take the
    place; `point` is the failpoint behind that. Raises ProofFailed when there is nothing, unless
    that `may_be`; LeaseLost.
    """
    database = worker.settings.clickhouse_database
    copy = _new_copy(worker, day)
    with named_errors(f"copying {day} of {source}"):
        worker.clickhouse.command(
            f"ALTER TABLE {database}.{copy} ATTACH PARTITION '{day}' FROM {database}.{source}"
        )
    prove(copy)
    is_empty = not rows_by_batch(worker, copy, day)
    if is_empty and not may_be_empty:
        raise ProofFailed(f"{source} has nothing of {day} any more: {table} stays as it is")
    assert_held(worker.ledger, topics)
    failpoint(point)
    with named_errors(f"replacing {day} of {table}"):
        _let_go(
            worker,
            # ClickHouse takes no partition's place with nothing.
            f"ALTER TABLE {database}.{table} MOVE PARTITION '{day}' TO TABLE {database}.{copy}"
            if is_empty
            else f"ALTER TABLE {database}.{table} REPLACE PARTITION '{day}' FROM {database}.{copy}",
        )
    drop_copies(worker, day)


def take_away(worker: Worker, topics: Lease, day: date) -> None:
    """Let a date of `events` be gone, which the ledger has noted, under the topics' lease."""
    database = worker.settings.clickhouse_database
    copy = _new_copy(worker, day)
    assert_held(worker.ledger, topics)
    failpoint("rows-marked")
    with named_errors(f"dropping {day} of events"):
        _let_go(
            worker,
            f"ALTER TABLE {database}.events MOVE PARTITION '{day}' TO TABLE {database}.{copy}",
        )
    failpoint("rows-moved")
    drop_copies(worker, day)


def refuse_late_swaps(worker: Worker, day: date) -> None:
    """To be asked before anything is inserted into a date of `events`, under the topics' lease."""
    rebuild = last_rebuild(worker.ledger, worker.settings.topic, day)
    is_moving = rebuild is not None and rebuild.state in MOVING
    is_old = day < datetime.now(UTC).date()  # housekeeping lets go of no other
    if is_moving or (is_old and are_rows_let_go(worker.ledger, day, *worker.settings.topics)):
        drop_copies(worker, day)


def _new_copy(worker: Worker, day: date) -> str:
    """An empty table of a name of its own; all others of the date are dropped."""
    database = worker.settings.clickhouse_database
    drop_copies(worker, day)
    copy = f"{_copies(worker, day)}{uuid4().hex[:8]}"
    with named_errors(f"making {copy}"):
        worker.clickhouse.command(f"CREATE TABLE {database}.{copy} AS {database}.events")
    return copy


def drop_copies(worker: Worker, day: date) -> None:
    """Drop what was to take a date's place; returns when no command is at it any more.

    The caller has the topics' lease, or that of the date's rebuild.
    """
    database = worker.settings.clickhouse_database
    with named_errors(f"dropping copies of {day}"):
        found = worker.clickhouse.query(
            _COPIES, parameters={"database": database, "copies": _copies(worker, day)}
        ).result_rows
        for (copy,) in found:
            _let_go(worker, f"DROP TABLE IF EXISTS {database}.{copy} SYNC")


def days_with_copies(worker: Worker) -> list[date]:
    """The dates of which there are copies, of rebuilds at work or of whoever was killed."""
    copies = _copies(worker)
    with named_errors("looking for copies"):
        found = worker.clickhouse.query(
            _COPIES,
            parameters={"database": worker.settings.clickhouse_database, "copies": copies},
        ).result_rows
    days = {str(name).removeprefix(copies).partition("_")[0] for (name,) in found}
    return sorted(date.fromisoformat(day) for day in days)


def _copies(worker: Worker, day: date | None = None) -> str:
    """How the names begin of copies, or a date's. Topics of others may have the same database."""
    topic = blake2b(worker.settings.topic.encode(), digest_size=4).hexdigest()
    return f"events_swap_{topic}_" + (f"{day:%Y%m%d}_" if day else "")


def rows_by_batch(worker: Worker, table: str, day: date) -> dict[str, int]:
    """How many rows of a date each batch has in a table."""
    database = worker.settings.clickhouse_database
    with named_errors(f"counting {table} of {day}"):
        rows = worker.clickhouse.query(
            _ROWS_BY_BATCH, parameters={"database": database, "table": table, "day": day}
        ).result_rows
    return {str(batch_id): int(count) for batch_id, count in rows}


def drop_partition(worker: Worker, table: str, day: date) -> None:
    """Let go of a date of the shadow, or of what was replaced."""
    database = worker.settings.clickhouse_database
    with named_errors(f"emptying {day} of {table}"):
        _let_go(worker, f"ALTER TABLE {database}.{table} DROP PARTITION '{day}'")


def _let_go(worker: Worker, command: str) -> None:
    client = worker.clickhouse
    client.command(command, settings=known_settings(client, _HOWEVER_LARGE))
