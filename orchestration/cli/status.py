"""`tidemark status`: what runs, since when all is queryable, the lag, and what needs a person."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from orchestration.cli.text import bytes_text, labelled
from orchestration.ledger.connection import open_ledger
from orchestration.settings_in_force import settings_but_cadence
from orchestration.standing import Completeness, TopicStanding, complete_of
from orchestration.status import Status, look
from orchestration.times import iso, span_text, utc_text

_MISSING = "not in Kafka, there is nothing of it to read"
_AUDITS_SHOWN = 5


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(as_json: bool) -> None:
    """Print what runs, since when all is queryable, the lag, and what needs a person."""
    in_force = settings_but_cadence()
    seen = look(in_force.settings, open_ledger(in_force.settings.ledger), in_force.trouble)
    print(json.dumps(document(seen)) if as_json else text(seen))


def document(seen: Status) -> dict[str, Any]:
    """All of it as one JSON document. Times are ISO 8601 in UTC, spans are seconds."""
    standing = seen.standing
    topics = standing.topics if standing else ()
    known = [topic for topic in topics if topic.trouble is None]
    return {
        "services": {record.name: record.pid for record in seen.services},
        "died": [{"service": record.name, "log": record.log} for record in seen.died],
        "kafka": seen.kafka,
        "seen_at": iso(standing.seen_at) if standing else None,
        "complete": _complete(seen.complete, standing.seen_at if standing else 0),
        "lag": sum(topic.not_planned for topic in known) if known else None,
        "not_loaded": sum(topic.not_loaded for topic in known) if known else None,
        "topics": [_topic(topic) for topic in topics],
        "batches": seen.batches,
        "audits": {
            "loaded": seen.audits.loaded,
            "proved": seen.audits.proved,
            "oldest_proof": iso(seen.audits.oldest_proof),
            "failed": [
                {
                    "batch_id": audit.batch_id,
                    "proved_at": iso(audit.proved_at),
                    "outcome": audit.outcome,
                    "detail": audit.detail,
                }
                for audit in seen.audits.failed
            ],
        },
        "last_failures": [
            {
                "batch_id": attempt.batch_id,
                "stage": attempt.stage,
                "attempt": attempt.number,
                "run_id": attempt.run_id,
                "ended_at": iso(attempt.ended_at),
                "error_class": attempt.error_class,
                "error_text": attempt.error_text,
                "error_code": attempt.error_code,
                "remedy": attempt.remedy,
                "next_try_at": iso(attempt.next_try_at),
            }
            for attempt in seen.failures
        ],
        "trouble": list(seen.trouble),
        "waiting_for_a_person": [
            {
                "batch_id": batch.batch_id,
                "topic": batch.topic,
                "state": batch.state.value,
                "note": batch.note,
                "rejected": dict(batch.staged.reasons) if batch.staged else {},
            }
            for batch in seen.waiting_for_a_person
        ],
    }


def _topic(topic: TopicStanding) -> dict[str, Any]:
    is_known = topic.trouble is None
    oldest = topic.oldest
    return {
        "topic": topic.topic,
        "lanes": len(topic.lanes),
        "lag": topic.not_planned if is_known else None,
        "note": _note(topic),
        "complete": _complete(complete_of(topic), topic.seen_at),
        "not_loaded": topic.not_loaded if is_known else None,
        "not_loaded_bytes": topic.not_loaded_bytes if is_known else None,
        "oldest_not_loaded": iso(oldest.oldest_at) if oldest else None,
        "oldest_not_loaded_age": _age(topic, oldest.oldest_at) if oldest else None,
        "retention_ms": topic.retention.ms,
        "retention_bytes": topic.retention.bytes,
        "earliest": iso(topic.earliest_at),
        "earliest_age": _age(topic, topic.earliest_at),
        "unread_expires": iso(topic.expires_at),
        "unread_expires_in": None
        if topic.expires_at is None
        else round(max(0, topic.expires_at - topic.seen_at) / 1e6, 3),
        "lost": topic.lost,
        "partitions": [
            {
                **{name: value for name, value in asdict(lane).items() if not name.endswith("_at")},
                "earliest_at": iso(lane.earliest_at),
                "oldest_at": iso(lane.oldest_at),
            }
            for lane in topic.lanes
        ],
    }


def _complete(complete: Completeness, seen_at: int) -> dict[str, Any]:
    return {
        "before": iso(complete.before),
        "age": None if complete.before is None else round((seen_at - complete.before) / 1e6, 3),
        "at_least": complete.is_bound,
        "held_by": complete.held_by,
    }


def _age(topic: TopicStanding, at: int | None) -> float | None:
    return None if at is None else round(max(0, topic.seen_at - at) / 1e6, 3)


def _note(topic: TopicStanding) -> str:
    if topic.is_missing:
        return _MISSING
    return str(topic.trouble) if topic.trouble else ""


def text(seen: Status) -> str:
    """The same for a person."""
    lines: list[str] = []
    if not seen.services and not seen.died:
        lines += labelled("services", "none of the local stack runs: `make up` starts it")
    for record in seen.services:
        lines.append(f"service   {record.name} (pid {record.pid})")
    for record in seen.died:
        lines.append(f"service   {record.name} died (log: {record.log})")
    if seen.died:
        lines += labelled("", "`tidemark down`, then `tidemark up` mends it")
    lines += labelled("kafka", seen.kafka)
    lines += _complete_lines(seen)
    if seen.standing is not None:
        for topic in seen.standing.topics:
            lines += _topic_lines(topic)
        known = [topic for topic in seen.standing.topics if topic.trouble is None]
        if known:
            lag = sum(topic.not_planned for topic in known)
            lines += labelled("lag", f"{lag:,} records not planned yet")
    for state, count in seen.batches.items():
        lines += labelled("batches", f"{count:,} {state}")
    lines += _audit_lines(seen)
    for attempt in seen.failures:
        ended = utc_text(attempt.ended_at) if attempt.ended_at else "did not end"
        lines += labelled(
            "failed",
            f"{ended}, {attempt.stage} of batch {attempt.batch_id}, attempt {attempt.number}: "
            f"{attempt.error_class}: {attempt.error_text}",
        )
    for trouble in seen.trouble:
        lines += labelled("ATTENTION", trouble)
    for batch in seen.waiting_for_a_person:
        lines += labelled("ATTENTION", f"batch {batch.batch_id} is {batch.state}: {batch.note}")
    return "\n".join(lines)


def _complete_lines(seen: Status) -> list[str]:
    complete = seen.complete
    if seen.standing is None or complete.before is None:
        return labelled("complete", f"cannot be said: {complete.held_by}")
    at_least = "at least " if complete.is_bound else ""
    lines = labelled(
        "complete",
        f"{at_least}before {utc_text(complete.before)} "
        f"({span_text(seen.standing.seen_at - complete.before)} ago): all that Kafka had by then "
        "is loaded or accounted for",
    )
    if complete.held_by:
        lines += labelled("", f"held by {complete.held_by}")
    if seen.audits.failed:
        lines += labelled(
            "", f"but {len(seen.audits.failed):,} loaded batches do not hold, see below"
        )
    return lines


def _topic_lines(topic: TopicStanding) -> list[str]:
    if topic.trouble is not None:
        return labelled("topic", f"{topic.topic}: {_note(topic)}")
    lines = labelled(
        "topic",
        f"{topic.topic}: {len(topic.lanes)} lanes, {topic.not_planned:,} records not planned",
    )
    if topic.not_loaded:
        size = topic.not_loaded_bytes
        told = f"{topic.not_loaded:,} records not loaded"
        told += f", about {bytes_text(size)}" if size else ""
        oldest = topic.oldest
        if oldest is not None and oldest.oldest_at is not None:
            at_most = "at most " if oldest.is_bound else ""
            told += f"; the oldest is {at_most}{span_text(topic.seen_at - oldest.oldest_at)} old"
        lines += labelled("", told)
    kept = [span_text(topic.retention.ms * 1000)] if topic.retention.ms is not None else []
    if topic.retention.bytes is not None:
        kept.append(f"{bytes_text(topic.retention.bytes)} a partition")
    if topic.earliest_at is not None:
        told = f"Kafka's oldest record is {span_text(topic.seen_at - topic.earliest_at)} old"
        told += f"; kept for {' or '.join(kept)}" if kept else "; kept for ever"
        if topic.expires_at is not None:
            left = topic.expires_at - topic.seen_at
            when = f"in {span_text(left)}" if left > 0 else "NOW"
            told += f"; the oldest unread one may go {when}"
        lines += labelled("", told)
    if topic.lost:
        lines += labelled(
            "ATTENTION", f"{topic.topic}: {topic.lost:,} records were gone before reading"
        )
    return lines


def _audit_lines(seen: Status) -> list[str]:
    audits = seen.audits
    if not audits.loaded:
        return []
    told = f"{audits.proved:,} of {audits.loaded:,} loaded batches proved again"
    if audits.oldest_proof is not None:
        told += f", the longest ago {utc_text(audits.oldest_proof)}"
    lines = labelled("audit", told)
    for audit in audits.failed[:_AUDITS_SHOWN]:
        lines += labelled("ATTENTION", f"batch {audit.batch_id} does not hold: {audit.detail}")
    if audits.failed:
        more = len(audits.failed) - _AUDITS_SHOWN
        others = f"{more:,} more batches do not hold; " if more > 0 else ""
        lines += labelled("", f"{others}`tidemark reconcile` says what to do")
    return lines
