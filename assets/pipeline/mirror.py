"""Mirror: copies of the ledger's batches and attempts in ClickHouse, for lineage queries.

The newest copy of a row is the one that counts; a copy that was lost comes with the next one, or
with a repair. How the topics stood is noted beside it, once a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client
from sqlalchemy import Engine

from assets.pipeline.batch import Balance, Batch, Kind
from assets.pipeline.clickhouse import named_errors
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.standing import Completeness, Standing, TopicStanding, complete_of
from orchestration.times import utc

_BATCH_COLUMNS = [
    "batch_id",
    "topic",
    "topic_id",
    "arrival_date",
    "generation",
    "state",
    "run_id",
    "code_version",
    "planned_at",
    "staged_at",
    "loaded_at",
    "committed_at",
    "ok",
    "rejected",
    "redriven",
    "letters",
    "lost",
    "duplicate",
    "tombstone",
    "absent",
    "ranges",
    "staged_file",
]
_ATTEMPT_COLUMNS = [
    "batch_id",
    "stage",
    "number",
    "run_id",
    "host",
    "started_at",
    "ended_at",
    "outcome",
    "error_class",
    "error_text",
    "error_code",
    "remedy",
    "retriable",
    "next_try_at",
]
_STANDING_COLUMNS = [
    "topic",
    "seen_at",
    "not_planned",
    "not_loaded",
    "not_loaded_bytes",
    "oldest_not_loaded_at",
    "earliest_at",
    "unread_expires_at",
    "lost",
    "complete_before",
    "complete_held_by",
    "all_complete_before",
    "all_complete_held_by",
    "trouble",
]
_IDS_A_QUERY = 1_000


def mirror(
    client: Client, database: str, batches: Sequence[Batch], attempts: Iterable[Attempt]
) -> None:
    """Copy these batches and attempts as they are now."""
    if not batches:
        return
    with named_errors("mirroring the ledger"):
        client.insert(
            "batches",
            [_batch_row(batch) for batch in batches],
            column_names=_BATCH_COLUMNS,
            database=database,
            settings={"async_insert": 0},
        )
        rows = [_attempt_row(attempt) for attempt in attempts]
        if rows:
            client.insert(
                "batch_attempts",
                rows,
                column_names=_ATTEMPT_COLUMNS,
                database=database,
                settings={"async_insert": 0},
            )


def mirrored_states(client: Client, database: str, batch_ids: Sequence[str]) -> dict[str, str]:
    """The state in which the mirror knows each of these batches; those unknown are missing."""
    states: dict[str, str] = {}
    for at in range(0, len(batch_ids), _IDS_A_QUERY):
        with named_errors("reading the mirror"):
            rows = client.query(
                "SELECT batch_id, argMax(state, mirrored_at) FROM {database:Identifier}.batches "
                "WHERE batch_id IN {batch_ids:Array(String)} GROUP BY batch_id",
                parameters={
                    "database": database,
                    "batch_ids": list(batch_ids[at : at + _IDS_A_QUERY]),
                },
            ).result_rows
        states.update({str(batch_id): str(state) for batch_id, state in rows})
    return states


def note_standing(client: Client, database: str, standing: Standing) -> None:
    """Note how the topics stand."""
    with named_errors("noting how the topics stand"):
        client.insert(
            "topic_standings",
            [_standing_row(topic, standing.complete) for topic in standing.topics],
            column_names=_STANDING_COLUMNS,
            database=database,
            settings={"async_insert": 0},
        )


def mirror_whole(client: Client, database: str, ledger: Engine, batches: Sequence[Batch]) -> None:
    """Copy these batches with all attempts at them."""
    attempts = [one for batch in batches for one in attempts_of(ledger, batch.batch_id)]
    mirror(client, database, batches, attempts)


def mirrored_ends(client: Client, database: str, topic_id: str) -> dict[int, int]:
    """Per partition, the end of the furthest batch of a topic incarnation in the mirror."""
    with named_errors("reading the mirror"):
        rows = client.query(
            "SELECT range.partition, max(range.end) FROM {database:Identifier}.batches "
            "ARRAY JOIN ranges AS range WHERE topic_id = {topic_id:String} GROUP BY 1",
            parameters={"database": database, "topic_id": topic_id},
        ).result_rows
    return {int(partition): int(end) for partition, end in rows}


def _batch_row(batch: Batch) -> list[Any]:
    balance = batch.staged.balance if batch.staged else Balance()
    file = batch.staged.file(Kind.EVENTS) if batch.staged else None
    return [
        batch.batch_id,
        batch.topic,
        batch.topic_id,
        batch.arrival_date,
        batch.generation,
        batch.state.value,
        batch.run_id,
        batch.code_version,
        _time(batch.planned_at),
        _time(batch.staged_at),
        _time(batch.loaded_at),
        _time(batch.committed_at),
        balance.ok,
        balance.rejected,
        balance.redriven,
        batch.letters,
        balance.lost,
        balance.duplicate,
        balance.tombstone,
        balance.absent,
        [(range_.partition, range_.start, range_.end) for range_ in batch.ranges],
        file.path if file else "",
    ]


def _attempt_row(attempt: Attempt) -> list[Any]:
    return [
        attempt.batch_id,
        attempt.stage,
        attempt.number,
        attempt.run_id,
        attempt.host,
        _time(attempt.started_at),
        _time(attempt.ended_at),
        attempt.outcome or "",
        attempt.error_class or "",
        attempt.error_text or "",
        attempt.error_code,
        attempt.remedy or "",
        attempt.retriable,
        _time(attempt.next_try_at),
    ]


def _standing_row(topic: TopicStanding, all_complete: Completeness) -> list[Any]:
    complete = complete_of(topic)
    return [
        topic.topic,
        _time(topic.seen_at),
        topic.not_planned,
        topic.not_loaded,
        topic.not_loaded_bytes,
        _time(topic.oldest.oldest_at) if topic.oldest else None,
        _time(topic.earliest_at),
        _time(topic.expires_at),
        topic.lost,
        _time(complete.before),
        complete.held_by,
        _time(all_complete.before),
        all_complete.held_by,
        "" if topic.is_missing else str(topic.trouble or ""),
    ]


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else utc(microseconds)
