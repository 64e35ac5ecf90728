"""An explanation as one JSON document. Times are ISO 8601 in UTC, null where there is none."""

from __future__ import annotations

from typing import Any

from assets.pipeline.batch import Balance, Batch
from assets.pipeline.reasons import SENTENCES, Reason
from orchestration.explain.explanation import Explanation
from orchestration.explain.record import Record
from orchestration.explain.steps import steps
from orchestration.ledger.attempts import Attempt
from orchestration.times import iso


def document(explanation: Explanation) -> dict[str, Any]:
    """The whole of it."""
    search = explanation.search
    return {
        "id": explanation.wanted.text,
        "found": bool(explanation.records),
        "requests": requests(explanation),
        "records": [
            _record(record, explanation.batches.get(record.batch_id or ""))
            for record in explanation.records
        ],
        "batches": [
            _batch(batch, explanation.attempts[batch_id])
            for batch_id, batch in explanation.batches.items()
        ],
        "looked_at": search.looked_at,
        "bounded": search.bounded,
        "away": search.away,
    }


def requests(explanation: Explanation) -> list[dict[str, Any]]:
    """The requests that the records came with, in order, and how many of them each had."""
    found: dict[str, dict[str, Any]] = {}
    for record in explanation.records:
        request = found.setdefault(
            record.request_id, {"receipt": record.request_id, "received_at": None, "records": 0}
        )
        request["received_at"] = request["received_at"] or iso(record.received_at)
        request["records"] += 1
    return list(found.values())


def sentence_of(reason: str) -> str:
    """What a dead letter's reason means; empty for one that this code does not know."""
    return SENTENCES[Reason(reason)] if reason in set(Reason) else ""


def _record(record: Record, batch: Batch | None) -> dict[str, Any]:
    origin = record.duplicate_of
    return {
        "verdict": record.verdict.value.replace(" ", "_"),
        "note": record.note,
        "project_id": record.project_id,
        "uuid": record.uuid,
        "event": record.event,
        "distinct_id": record.distinct_id,
        "request_id": record.request_id,
        "received_at": iso(record.received_at),
        "topic": record.place.topic,
        "partition": record.place.partition if record.place.partition >= 0 else None,
        "offset": record.place.offset if record.place.partition >= 0 else None,
        "appended_at": iso(record.appended_at),
        "file": record.file or None,
        "line": record.place.offset if record.file else None,
        "batch_id": record.batch_id,
        "batch_state": None if batch is None else batch.state.value,
        "duplicate_of": None if origin is None else vars(origin),
        "reason": record.reason or None,
        "reason_means": sentence_of(record.reason) or None,
        "detail": record.detail or None,
        "row": None
        if record.inserted_at is None
        else {"run_id": record.run_id, "inserted_at": iso(record.inserted_at)},
        "seconds": steps(record, batch),
    }


def _batch(batch: Batch, attempts: tuple[Attempt, ...]) -> dict[str, Any]:
    return {
        "batch_id": batch.batch_id,
        "topic": batch.topic,
        "topic_id": batch.topic_id,
        "arrival_date": batch.arrival_date.isoformat(),
        "generation": batch.generation,
        "ranges": [[r.partition, r.start, r.end] for r in batch.ranges],
        "letters": batch.letters,
        "state": batch.state.value,
        "note": batch.note,
        "run_id": batch.run_id,
        **{name: iso(at) for name, at in states(batch).items()},
        "balance": vars(batch.staged.balance if batch.staged else Balance()),
        "files": [
            {**vars(file), "let_go_at": iso(file.let_go_at)}
            for file in (batch.staged.files if batch.staged else ())
        ],
        "seconds": {stage: timing.wall for stage, timing in batch.timings.items()},
        "attempts": [
            {
                "stage": attempt.stage,
                "number": attempt.number,
                "run_id": attempt.run_id,
                "host": attempt.host,
                "started_at": iso(attempt.started_at),
                "ended_at": iso(attempt.ended_at),
                "outcome": attempt.outcome,
                "error_class": attempt.error_class,
                "error_text": attempt.error_text,
            }
            for attempt in attempts
        ],
    }


def states(batch: Batch) -> dict[str, int | None]:
    """When a batch reached each state, in µs."""
    return {
        "planned_at": batch.planned_at,
        "staged_at": batch.staged_at,
        "loaded_at": batch.loaded_at,
        "dead_letters_loaded_at": batch.dead_letters_loaded_at,
        "committed_at": batch.committed_at,
    }
