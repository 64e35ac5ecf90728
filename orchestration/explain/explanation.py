"""The explanation: every source is asked, and what is found is put in order.

    id ─▶ ClickHouse: rows, dead letters          ┐
       ─▶ lake: duplicates, what is not loaded    ├─▶ records ─▶ their batches, from the ledger
       ─▶ Kafka: what is not staged               │           └▶ how long each step took
       ─▶ spool: what Kafka could not take        ┘

A part that is away is told as such, and the others are asked all the same. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta

from sqlalchemy import Engine

from assets.pipeline import object_store
from assets.pipeline.batch import IMPORT_PREFIX, LOADED, Batch, Kind, StagedFile, State
from assets.pipeline.errors import BatchError
from assets.pipeline.lake import UNREADABLE, Lake
from assets.pipeline.staged_files import let_go_on, told_let_go
from assets.pipeline.topic import midnight_ms
from orchestration.explain.in_clickhouse import search_clickhouse
from orchestration.explain.in_kafka import Found, search_kafka
from orchestration.explain.in_lake import Lookup, search_batch
from orchestration.explain.in_spool import search_spool
from orchestration.explain.record import Record, Search, Verdict
from orchestration.explain.wanted import Wanted
from orchestration.ledger.attempts import Attempt, attempts_of
from orchestration.ledger.batches import (
    arrival_dates,
    batch_at,
    batches_between,
    read_batch,
    unfinished_batches,
    waiting_for_a_person,
)
from orchestration.ledger.imports import import_named
from orchestration.ledger.redrives import Outcome, tries_of
from orchestration.settings import Settings
from orchestration.times import utc

MOST_FILES = 500
MOST_SECONDS = 15.0
"""What one look-up reads of the lake at most."""


@dataclass(frozen=True)
class Explanation:
    """Everything about one id. Batches are those that hold the records."""

    wanted: Wanted
    records: tuple[Record, ...]
    batches: dict[str, Batch]
    attempts: dict[str, tuple[Attempt, ...]]
    search: Search


def explain(settings: Settings, ledger: Engine, wanted: Wanted) -> Explanation:
    """Look everywhere."""
    search = Search()
    search_clickhouse(settings, wanted, search)
    lake = Lake(settings.lake)
    _search_lake(settings, ledger, lake, wanted, search)
    for found in search_kafka(settings, ledger, wanted, search):
        search.add(_placed(ledger, lake, wanted, search, found))
    bounded_by = wanted.day or wanted.made_at_ms
    if not search.records and bounded_by is not None and "Kafka" not in search.away:
        for found in search_kafka(settings, ledger, wanted, search, staged_too=True):
            search.add(_placed(ledger, lake, wanted, search, found))
    if any(record.verdict is Verdict.MISSING for record in search.records.values()):
        _ask_again(settings, wanted, search)
    search_spool(settings, wanted, search)
    if not search.records:
        search.bounded.append(_how_to_look_farther(settings, ledger, wanted, search))
    records = [
        _with_file(ledger, _with_tries(ledger, _with_first_topic(ledger, record)))
        for record in search.records.values()
    ]
    batches = _batches_of(ledger, records)
    return Explanation(
        wanted,
        tuple(sorted(records, key=lambda record: (record.appended_at or 0, record.place))),
        batches,
        {batch_id: tuple(attempts_of(ledger, batch_id)) for batch_id in batches},
        search,
    )


def _how_to_look_farther(settings: Settings, ledger: Engine, wanted: Wanted, search: Search) -> str:
    """Of what arrived on other days only ClickHouse was asked; which days there are."""
    first, last = _days(settings, wanted, search)
    told = f"of what arrived before {first} or after {last} only ClickHouse was asked"
    if wanted.day is None and wanted.made_at_ms is None:
        told = f"the id tells no time: {told}, and Kafka only for what is not staged"
    known = arrival_dates(ledger, *settings.topics)
    if known is None:
        return f"{told}; the ledger has no batch"
    return (
        f"{told}. `tidemark explain {wanted.text} --date YYYY-MM-DD` looks at another day; there "
        f"are batches of {known[0]} to {known[1]}"
    )


def _ask_again(settings: Settings, wanted: Wanted, search: Search) -> None:
    """What ClickHouse did not have may have been loaded while the rest was asked."""
    again = Search()
    search_clickhouse(settings, wanted, again)
    for place, record in again.records.items():
        known = search.records.get(place)
        if known is not None and known.verdict is Verdict.MISSING:
            search.records[place] = record
    search.looked_at += [f"{line} when asked again" for line in again.looked_at]
    search.away.update(again.away)


def _search_lake(
    settings: Settings, ledger: Engine, lake: Lake, wanted: Wanted, search: Search
) -> None:
    """Files of batches that ClickHouse does not have yet, and of duplicates near what is known.

    With nothing found, or without ClickHouse, also the events and dead letters near that time.
    """
    topics = settings.topics_by_urgency
    pending = {
        batch.batch_id: batch
        for batch in (
            *unfinished_batches(ledger, *topics),
            *waiting_for_a_person(ledger, *topics),
        )
    }
    files = [(batch, kind) for batch in pending.values() for kind in Kind]
    days = _days(settings, wanted, search)
    middle = _middle_us(wanted, search)
    near = sorted(
        (
            batch
            for batch in batches_between(ledger, *days, *topics)
            if batch.batch_id not in pending
        ),
        key=lambda batch: abs(batch.planned_at - middle),
    )
    everything = not search.records or "ClickHouse" in search.away
    kinds = tuple(Kind) if everything else (Kind.DUPLICATES,)
    files += [(batch, kind) for batch in near for kind in kinds]
    files = [(batch, kind) for batch, kind in files if batch.staged and batch.staged.file(kind)]
    let_go = [f for batch, kind in files if (f := _file_let_go(batch, kind)) is not None]
    files = [(batch, kind) for batch, kind in files if _file_let_go(batch, kind) is None]
    if let_go:
        when = sorted({let_go_on(file) for file in let_go})
        search.bounded.append(
            f"{len(let_go):,} files of the lake were let go ({when[0]} to {when[-1]}) and could "
            "not be read: what is only there, as duplicates are, is not found"
        )
    found = read = 0
    end = time.monotonic() + MOST_SECONDS
    for batch, kind in files:
        if wanted.day is None and (read >= MOST_FILES or time.monotonic() > end):
            break
        read += 1
        try:
            for record in search_batch(lake, batch, kind, Lookup(wanted)):
                found += search.add(_judged(record, batch, search))
        except UNREADABLE as error:
            why = object_store.told(error)
            search.bounded.append(f"the {kind} of batch {batch.batch_id} cannot be read: {why}")
    if read < len(files):
        search.bounded.append(
            f"of {len(files):,} files in the lake the {read:,} nearest in time were read (at most "
            f"{MOST_FILES:,}, in {MOST_SECONDS:.0f} s)"
        )
    what = "events, dead letters and duplicates" if everything else "duplicates"
    search.looked_at.append(
        f"lake, {what} of {days[0]} to {days[1]} and whatever is not loaded yet, "
        f"{read:,} files: {found:,} found"
    )


def _file_let_go(batch: Batch, kind: Kind) -> StagedFile | None:
    """The file of a kind, if housekeeping let go of it."""
    file = batch.staged.file(kind) if batch.staged else None
    return file if file is not None and file.let_go_at is not None else None


def _days(settings: Settings, wanted: Wanted, search: Search) -> tuple[date, date]:
    """The arrival dates near what was found, else near the time in the id, else near today.

    Or the one that was asked for.
    """
    if wanted.day is not None:
        return wanted.day, wanted.day
    reach = timedelta(days=settings.duplicate_window_days - 1)
    times = [record.appended_at for record in search.records.values() if record.appended_at]
    if not times:
        times = [_middle_us(wanted, search)]
        reach = max(reach, timedelta(days=1))
    first, last = (utc(us).date() for us in (min(times), max(times)))
    return first - reach, last + reach


def _middle_us(wanted: Wanted, search: Search) -> int:
    if wanted.day is not None:
        return midnight_ms(wanted.day) * 1000
    times = [record.appended_at for record in search.records.values() if record.appended_at]
    if times:
        return sum(times) // len(times)
    if wanted.made_at_ms is not None:
        return min(wanted.made_at_ms * 1000, time.time_ns() // 1000)
    return time.time_ns() // 1000


def _judged(record: Record, batch: Batch, search: Search) -> Record:
    """A record of a staged file, held against what ClickHouse says."""
    if batch.state is State.HELD:
        note = f"its batch is held until somebody says `tidemark release {batch.batch_id}`"
        return replace(record, note=note)
    if record.verdict is Verdict.DEAD_LETTER and batch.dead_letters_loaded_at is None:
        return replace(record, note="not in the table dead_letters yet")
    if record.verdict is not Verdict.STAGED or batch.state not in LOADED:
        return record
    if batch.rows_let_go_at is not None:
        day = utc(batch.rows_let_go_at).date()
        note = f"it stands in the lake; its date of events was let go on {day}"
        return replace(record, verdict=Verdict.LET_GO, note=note)
    if "ClickHouse" in search.away:
        note = "the ledger says so; ClickHouse could not be asked"
        return replace(record, verdict=Verdict.LOADED, note=note)
    note = f"its batch is {batch.state} and it stands in the lake, but ClickHouse has no such row"
    return replace(record, verdict=Verdict.MISSING, note=note)


def _placed(ledger: Engine, lake: Lake, wanted: Wanted, search: Search, found: Found) -> Record:
    """A record of Kafka, with the batch that holds its offset, and what that made of it."""
    record = found.record
    batch = batch_at(ledger, found.topic_id, record.place.partition, record.place.offset)
    if batch is None:
        return record
    record = replace(record, batch_id=batch.batch_id)
    if batch.staged is None:
        return replace(record, verdict=Verdict.PLANNED)
    let_go = [file for kind in Kind if (file := _file_let_go(batch, kind)) is not None]
    for kind in Kind:
        if _file_let_go(batch, kind) is not None:
            continue
        try:
            for staged in search_batch(lake, batch, kind, Lookup(wanted, record.place)):
                return replace(
                    _judged(staged, batch, search),
                    event=record.event,
                    distinct_id=record.distinct_id,
                    request_id=record.request_id,
                    received_at=record.received_at,
                )
        except UNREADABLE as error:
            return replace(record, verdict=Verdict.STAGED, note=f"{kind} unreadable: {error}")
    if let_go:
        note = "; ".join(told_let_go(file) for file in let_go)
        return replace(record, verdict=Verdict.LET_GO, note=note)
    note = f"Kafka has it, but no file of batch {batch.batch_id} does"
    return replace(record, verdict=Verdict.MISSING, note=note)


def _with_first_topic(ledger: Engine, record: Record) -> Record:
    if record.duplicate_of is None:
        return record
    batch = _known(ledger, record.duplicate_of.batch_id)
    topic = "" if batch is None else batch.topic
    return replace(record, duplicate_of=replace(record.duplicate_of, topic=topic))


def _with_file(ledger: Engine, record: Record) -> Record:
    """An imported record with the file that it stands in, as far as this ledger knows it."""
    if not record.place.topic.startswith(IMPORT_PREFIX):
        return record
    with suppress(BatchError):
        return replace(record, file=import_named(ledger, record.place.topic).uri)
    return record


def _with_tries(ledger: Engine, record: Record) -> Record:
    """A dead letter, or what a redrive made of one, with the tries at it."""
    if record.verdict not in (Verdict.DEAD_LETTER, Verdict.LOADED):
        return record
    tries = tries_of(ledger, *record.place)
    # The place may have been another record's before the topic was made anew.
    olds = {
        one.old_batch_id for one in tries if record.batch_id in (one.batch_id, one.old_batch_id)
    }
    tries = [one for one in tries if one.old_batch_id in olds]
    if not tries:
        return record
    last = tries[-1]
    note = (
        f"rejected at first ({last.reason}) by batch {last.old_batch_id}; redrive {last.batch_id}"
    )
    if record.verdict is Verdict.LOADED:
        note = f"{note} made it an event, at try {last.number}"
    elif last.given_up:
        note = f"{note} was given up"
    elif last.outcome is None:
        note = f"{note} is on its way with it"
    elif last.outcome is Outcome.EVENT:
        note = f"{note} makes it an event, which is not loaded yet"
    elif last.outcome is Outcome.DUPLICATE:
        note = f"{note} found its uuid stored already"
    else:
        note = f"{note} rejected it again ({last.new_reason}), at try {last.number}"
    return replace(record, note=f"{record.note}; {note}" if record.note else note)


def _batches_of(ledger: Engine, records: Iterable[Record]) -> dict[str, Batch]:
    """The batches that hold the records, as far as this ledger knows them.

    What a duplicate repeats is named by its record, and explained by its own uuid.
    """
    ids = dict.fromkeys(record.batch_id for record in records if record.batch_id)
    found = {batch_id: _known(ledger, batch_id) for batch_id in ids}
    return {batch_id: batch for batch_id, batch in found.items() if batch is not None}


def _known(ledger: Engine, batch_id: str) -> Batch | None:
    try:
        return read_batch(ledger, batch_id)
    except BatchError:
        return None
