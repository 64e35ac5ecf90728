"""One batch as `tidemark batch ID` shows it: where it stands, and every attempt at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from assets.pipeline.batch import Batch
from assets.pipeline.staged_files import let_go_on
from orchestration.ledger.attempts import Attempt
from orchestration.times import exact_iso, utc_text


def document(batch: Batch, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """All of it as one JSON document. Times are ISO 8601 in UTC."""
    return {
        "batch_id": batch.batch_id,
        "topic": batch.topic,
        "arrival_date": batch.arrival_date.isoformat(),
        "state": batch.state.value,
        "note": batch.note,
        "retries": batch.retries,
        "ranges": [[r.partition, r.start, r.end] for r in batch.ranges],
        "balance": vars(batch.staged.balance) if batch.staged else None,
        "files": [
            {**vars(file), "let_go_at": exact_iso(file.let_go_at)}
            for file in (batch.staged.files if batch.staged else ())
        ],
        "attempts": [
            {
                "stage": one.stage,
                "attempt": one.number,
                "run_id": one.run_id,
                "host": one.host,
                "started_at": exact_iso(one.started_at),
                "ended_at": exact_iso(one.ended_at),
                "outcome": one.outcome,
                "error_class": one.error_class,
                "error_code": one.error_code,
                "error_text": one.error_text,
                "remedy": one.remedy,
                "retriable": one.retriable,
                "next_try_at": exact_iso(one.next_try_at),
            }
            for one in attempts
        ],
    }


def text(batch: Batch, attempts: Sequence[Attempt]) -> str:
    """The same for a person."""
    lines = [
        f"batch     {batch.batch_id} is {batch.state}",
        f"records   {_records(batch)}, arrived {batch.arrival_date}",
    ]
    if batch.note:
        lines.append(f"note      {batch.note}")
    if batch.staged is not None:
        counts = (f"{n:,} {name}" for name, n in vars(batch.staged.balance).items() if n)
        lines.append(f"balance   {', '.join(counts) or 'nothing'}")
        for file in batch.staged.files:
            gone = f", let go on {let_go_on(file)}" if file.let_go_at is not None else ""
            lines.append(f"file      {file.path} ({file.rows:,} rows{gone})")
    for one in attempts:
        ended = f" to {utc_text(one.ended_at)}" if one.ended_at else ""
        lines.append(
            f"attempt   {one.stage} {one.number}: {one.outcome or 'at work'}, "
            f"{utc_text(one.started_at)}{ended}, run {one.run_id} on {one.host}"
        )
        if one.outcome == "failed":
            code = "" if one.error_code is None else f" {one.error_code}"
            lines.append(f"          {one.error_class}{code}: {one.error_text}")
            lines.append(f"          {_next_step(one)}")
    return "\n".join(lines)


def _records(batch: Batch) -> str:
    if batch.is_redrive:
        return f"{batch.letters:,} dead letters of {batch.topic}"
    return f"{batch.topic} {' '.join(map(str, batch.ranges))}"


def _next_step(failed: Attempt) -> str:
    if failed.next_try_at is not None:
        return f"tried again from {utc_text(failed.next_try_at)} on ({failed.remedy})"
    if failed.retriable is False:
        return "not tried again by itself: the same would be refused again"
    return "tried again by the next run, unless the batch waits for a person"
