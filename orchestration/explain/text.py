"""An explanation for people: lines of at most WIDTH columns, the most important ones first."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator

from assets.pipeline.batch import Batch
from assets.pipeline.staged_files import let_go_on
from orchestration.explain.document import requests, sentence_of, states
from orchestration.explain.explanation import Explanation
from orchestration.explain.record import SENTENCES, Record, Verdict
from orchestration.explain.steps import steps
from orchestration.ledger.attempts import Attempt
from orchestration.times import utc

WIDTH = 100

_SHOWN = 20  # records, of a request that may have thousands
_NAME = 10
_STEPS = {
    "to_kafka": "to Kafka",
    "until_planned": "until planned",
    "to_stage": "to stage",
    "to_load": "to load",
    "to_commit": "to commit",
}


def text(explanation: Explanation) -> str:
    """The whole of it."""
    return "\n".join(_lines(explanation))


def _lines(explanation: Explanation) -> Iterator[str]:
    records, search = explanation.records, explanation.search
    if not records:
        yield f"{explanation.wanted.text} was not found"
        if explanation.wanted.made_at_ms is not None:
            yield from _field("made", _time(explanation.wanted.made_at_ms * 1000))
    for request in requests(explanation):
        count = f"{request['records']:,} record{'s' if request['records'] > 1 else ''}"
        yield f"REQUEST {request['receipt'] or 'unknown'}: {count}"
    if len(records) > 1:
        counts = Counter(record.verdict.value for record in records)
        yield from _field("verdicts", ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    for record in records[:_SHOWN]:
        yield ""
        yield from _record(record, explanation.batches.get(record.batch_id or ""))
    if len(records) > _SHOWN:
        yield ""
        yield f"… and {len(records) - _SHOWN:,} more: --json has them"
    shown = {record.batch_id for record in records[:_SHOWN]}
    for batch_id, batch in explanation.batches.items():
        if batch_id in shown:
            yield ""
            yield from _batch(batch, explanation.attempts[batch_id])
    yield ""
    yield "LOOKED AT"
    for line in search.looked_at:
        yield from _wrapped(line, "  ")
    for line in search.bounded:
        yield from _wrapped(f"NOT ALL: {line}", "  ")
    for part in search.away:
        yield from _wrapped(f"AWAY: {part} could not be asked; what it knows is missing here", "  ")


def _record(record: Record, batch: Batch | None) -> Iterator[str]:
    yield f"RECORD {record.place}"
    verdict = f"{record.verdict}: {SENTENCES[record.verdict]}"
    if record.verdict is Verdict.DEAD_LETTER:
        verdict = f"{record.verdict}, {record.reason}: {sentence_of(record.reason)}"
    yield from _field("verdict", f"{verdict}; {record.note}" if record.note else verdict)
    if record.detail:
        yield from _field("detail", record.detail)
    origin = record.duplicate_of
    if origin is not None:
        place = f"{origin.topic or 'offset'} {origin.partition}:{origin.offset}"
        yield from _field("of", f"{place}, batch {origin.batch_id}")
    if record.uuid:
        name = f"{record.event!r}, " if record.event else ""
        who = f", distinct_id {record.distinct_id!r}" if record.distinct_id else ""
        yield from _field("event", f"{name}uuid {record.uuid}, project {record.project_id}{who}")
    if record.request_id:
        received = f", received {_time(record.received_at)}" if record.received_at else ""
        yield from _field("request", f"{record.request_id}{received}")
    if record.file:
        yield from _field("file", f"line {record.place.offset} of {record.file}")
    if record.appended_at:
        where, how = ("import", "begun") if record.file else ("kafka", "appended")
        yield from _field(where, f"{how} {_time(record.appended_at)}")
    if batch is not None:
        yield from _field("batch", f"{batch.batch_id}, {batch.state}")
    elif record.batch_id:
        yield from _field("batch", f"{record.batch_id}, which this ledger does not know")
    if record.inserted_at is not None:
        table = "dead_letters" if record.verdict is Verdict.DEAD_LETTER else "events"
        row = f"in {table}, inserted {_time(record.inserted_at)} by run {record.run_id}"
        yield from _field("row", row)
    took = [f"{seconds:,.3f} s {_STEPS[name]}" for name, seconds in steps(record, batch).items()]
    if took:
        yield from _field("took", ", ".join(took))


def _batch(batch: Batch, attempts: tuple[Attempt, ...]) -> Iterator[str]:
    yield f"BATCH {batch.batch_id} of {batch.topic}, {batch.arrival_date}: {batch.state}"
    if batch.note:
        yield from _field("note", batch.note)
    if batch.is_redrive:
        yield from _field("redrive", f"of {batch.letters:,} dead letters")
    else:
        yield from _field("ranges", " ".join(map(str, batch.ranges)))
    for name, at in states(batch).items():
        if at is not None:
            yield from _field(
                name.removesuffix("_at").replace("dead_letters_loaded", "letters"), _time(at)
            )
    for attempt in attempts:
        took = "did not end"
        if attempt.ended_at is not None:
            took = f"{attempt.outcome} after {(attempt.ended_at - attempt.started_at) / 1e6:,.3f} s"
        error = f": {attempt.error_class}: {attempt.error_text}" if attempt.error_class else ""
        what = f"{attempt.stage} {attempt.number}, {_time(attempt.started_at)}, {took}"
        yield from _field("attempt", f"{what}, run {attempt.run_id}{error}")
    for file in batch.staged.files if batch.staged else ():
        gone = f", let go on {let_go_on(file)}" if file.let_go_at is not None else ""
        told = f"{file.path} ({file.rows:,} rows, {file.bytes:,} bytes{gone})"
        yield from _field("file", told)
    if batch.timings:
        walls = (f"{stage} {timing.wall:.3f}" for stage, timing in batch.timings.items())
        yield from _field("seconds", ", ".join(walls))


def _field(name: str, value: str) -> Iterator[str]:
    yield from _wrapped(f"{name:{_NAME}}{value}", "  ", " " * _NAME)


def _wrapped(line: str, indent: str, hang: str = "  ") -> Iterator[str]:
    printable = "".join(sign if sign.isprintable() else "�" for sign in line)
    yield from textwrap.wrap(
        printable,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_on_hyphens=False,  # ids are copied
    )


def _time(microseconds: int) -> str:
    return f"{utc(microseconds):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"
