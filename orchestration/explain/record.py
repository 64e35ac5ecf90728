"""What is found: records, each with its verdict, and what was looked at to find them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from capture_api.events.record import EARLIEST_US, LATEST_US

MOST_RECORDS = 1_000
"""Records that one look-up shows: a request may hold many thousands."""


class Verdict(StrEnum):
    """What became of a record, as far as it has come."""

    LOADED = "loaded"
    DUPLICATE = "duplicate"
    DEAD_LETTER = "dead letter"
    STAGED = "staged"
    PLANNED = "planned"
    WAITING = "waiting"
    SPOOLED = "spooled"
    LET_GO = "let go"
    MISSING = "missing"


SENTENCES = {
    Verdict.LOADED: "it is a row of the table events",
    Verdict.DUPLICATE: "its project had sent the same uuid before, so it is not stored again",
    Verdict.DEAD_LETTER: "it was rejected",
    Verdict.STAGED: "it is in the lake and not in ClickHouse yet",
    Verdict.PLANNED: "it is in Kafka, and a batch that will read it is planned",
    Verdict.WAITING: "it is in Kafka, and no batch holds it yet: the next micro-batch will",
    Verdict.SPOOLED: "the capture API has it on disk and sends it on when Kafka takes it",
    Verdict.LET_GO: "its batch was loaded and proved, and was let go of since",
    Verdict.MISSING: "its batch is done, but it is not where it should be",
}


class Place(NamedTuple):
    """Where a record stands, in Kafka or in a file; a partition below nought: not there yet."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        if self.partition < 0:
            return f"for {self.topic}, not in Kafka yet"
        return f"{self.topic} {self.partition}:{self.offset}"


@dataclass(frozen=True)
class Origin:
    """The record that a duplicate repeats."""

    topic: str
    partition: int
    offset: int
    batch_id: str


@dataclass(frozen=True)
class Record:
    """One record. Times are µs since 1970; None and empty stand for what was not found out."""

    place: Place
    verdict: Verdict
    appended_at: int | None
    batch_id: str | None = None
    project_id: int | None = None
    uuid: str = ""
    event: str = ""
    distinct_id: str = ""
    request_id: str = ""
    received_at: int | None = None
    duplicate_of: Origin | None = None
    reason: str = ""
    detail: str = ""
    note: str = ""
    run_id: str = ""  # of the insert
    inserted_at: int | None = None
    file: str = ""  # that it was imported from; its offset is the line, or the row


def with_head(record: Record, head: dict[str, Any]) -> Record:
    """The record with what its head says, where that can be so."""

    def text(name: str) -> str:
        value = head.get(name)
        return value if isinstance(value, str) else ""

    def number(name: str) -> int | None:
        value = head.get(name)
        return value if isinstance(value, int) else None

    received_at = number("received_at")
    if received_at is not None and not EARLIEST_US <= received_at <= LATEST_US:
        received_at = None
    return replace(
        record,
        project_id=number("project_id"),
        uuid=text("uuid"),
        event=text("event"),
        distinct_id=text("distinct_id"),
        request_id=text("request_id"),
        received_at=received_at,
    )


@dataclass
class Search:
    """What was found so far, and how: every place that was looked at says what came of it."""

    records: dict[Place, Record] = field(default_factory=dict)
    looked_at: list[str] = field(default_factory=list)
    bounded: list[str] = field(default_factory=list)
    away: dict[str, str] = field(default_factory=dict)  # part → why it could not be asked

    def add(self, record: Record) -> bool:
        """Take a record in, unless it is known: what was found first knows more."""
        if record.place in self.records:
            return False
        if len(self.records) >= MOST_RECORDS:
            note = f"more than {MOST_RECORDS:,} records were found: the others are left out"
            if note not in self.bounded:
                self.bounded.append(note)
            return False
        self.records[record.place] = record
        return True
