"""Old dates: a ledger, a lake and tables with many dates of the past, all proved to be loaded.

    python -m bench.old_dates --dates 400 --batches 4

makes them under the settings of the environment, runs the first housekeeping over them with short
retention, and prints per kind what went, in which time and with how many statements, as one line of
JSON. Each batch has three rows, one dead letter, and files of a few bytes: what is measured is what
a date and a batch cost, not what their rows do.
"""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Engine, event, insert, select

from assets.pipeline.batch import Kind, State
from assets.pipeline.lake import lake_path
from assets.pipeline.worker import Worker
from bench.errors import BenchFailed, run_command
from orchestration.housekeeping import keep_house as house
from orchestration.housekeeping.keep_house import Report, keep_house
from orchestration.housekeeping.replaced import dates_in
from orchestration.ledger.batches import states
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.tables import (
    attempts,
    audits,
    batches,
    fingerprints,
    key_files,
    lanes,
    ranges,
    rejections,
    staged_files,
)
from orchestration.settings import Settings

_NAME = "bench"  # of the cluster, the topic's id, the run
_ROWS = 3
_OFFSETS = _ROWS + 1
_STAGES = ("stage", "load", "dead_letters")
_DAY_US = 86_400_000_000
_AT_ONCE = 5_000
KEEP = {
    "keep_staged_days": 3,
    "keep_dead_letters_days": 3,
    "keep_events_days": 3,
    "keep_keys_days": 3,
    "keep_ledger_days": 3,
    "duplicate_window_days": 2,
}
"""Retention with which everything of all but the last dates goes."""


def make_old_dates(worker: Worker, dates: int, a_date: int) -> date:
    """Make so many dates, up to four days ago, of so many batches each; gives the first."""
    first = datetime.now(UTC).date() - timedelta(days=dates + 3)
    numbered = [
        (number, first + timedelta(days=number // a_date), f"{number:024x}")
        for number in range(dates * a_date)
    ]
    of_table: dict[Any, Iterator[dict[str, Any]]] = {
        batches: (_batch(worker, *each) for each in numbered),
        ranges: (_range(number, batch_id) for number, _, batch_id in numbered),
        staged_files: (file for each in numbered for file in _files(worker, *each)),
        fingerprints: (print_ for each in numbered for print_ in _prints(*each)),
        rejections: (
            {"batch_id": batch_id, "reason": "not_json", "records": 1}
            for _, _, batch_id in numbered
        ),
        attempts: (each for number in numbered for each in _attempts(*number)),
        audits: (
            {"batch_id": batch_id, "proved_at": now_us(), "outcome": "holds", "detail": ""}
            for _, _, batch_id in numbered
        ),
        key_files: (_keys(worker, first + timedelta(days=day)) for day in range(dates)),
        lanes: iter([_lane(worker, len(numbered))]),
    }
    for table, rows in of_table.items():
        _insert(worker.ledger, table, rows)
    _fill(worker, first, a_date, len(numbered))
    return first


def _insert(ledger: Engine, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    found = list(rows)
    with ledger.begin() as connection:
        for at in range(0, len(found), _AT_ONCE):
            connection.execute(insert(table), found[at : at + _AT_ONCE])


def _loaded_at(day: date) -> int:
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return int(midnight.timestamp()) * 1_000_000 + _DAY_US // 2


def _batch(worker: Worker, number: int, day: date, batch_id: str) -> dict[str, Any]:
    at = _loaded_at(day)
    return {
        "batch_id": batch_id,
        "topic": worker.settings.topic,
        **dict.fromkeys(("cluster_id", "topic_id", "code_version", "run_id"), _NAME),
        "arrival_date": day,
        "generation": 0,
        "state": State.COMMITTED,
        "planned_at": at + number,
        "bytes_read": 1,
        **dict.fromkeys(("staged_at", "loaded_at", "dead_letters_loaded_at", "committed_at"), at),
    }


def _range(number: int, batch_id: str) -> dict[str, Any]:
    start = number * _OFFSETS
    return {
        "batch_id": batch_id,
        "partition": 0,
        "start": start,
        "end": start + _OFFSETS,
        "ok": _ROWS,
        "rejected": 1,
        "duplicate": 0,
        "tombstone": 0,
        "absent": 0,
    }


def _files(worker: Worker, number: int, day: date, batch_id: str) -> Iterator[dict[str, Any]]:
    for kind, rows in ((Kind.EVENTS, _ROWS), (Kind.DEAD_LETTERS, 1)):
        path = lake_path(kind, day, f"{batch_id}.parquet")
        _write(worker, path)
        yield {
            "batch_id": batch_id,
            "kind": kind,
            "path": path,
            "rows": rows,
            "bytes": 4,
            "sha256": "0" * 64,
        }


def _prints(number: int, day: date, batch_id: str) -> Iterator[dict[str, Any]]:
    start = number * _OFFSETS
    for kind, offsets in (
        (Kind.EVENTS, range(start, start + _ROWS)),
        (Kind.DEAD_LETTERS, range(start + _ROWS, start + _OFFSETS)),
    ):
        yield {
            "batch_id": batch_id,
            "kind": kind,
            "partition": 0,
            "rows": len(offsets),
            "min_offset": offsets[0],
            "max_offset": offsets[-1],
            "offset_sum": str(sum(offsets)),
            "offset_square_sum": str(sum(offset * offset for offset in offsets)),
        }


def _attempts(number: int, day: date, batch_id: str) -> Iterator[dict[str, Any]]:
    at = _loaded_at(day)
    for stage in _STAGES:
        yield {
            "batch_id": batch_id,
            "stage": stage,
            "number": 1,
            "run_id": _NAME,
            "host": _NAME,
            "started_at": at,
            "ended_at": at,
            "outcome": "ok",
        }


def _keys(worker: Worker, day: date) -> dict[str, Any]:
    path = lake_path("keys", day, "merged.arrow")
    _write(worker, path)
    return {"path": path, "arrival_date": day, "rows": _ROWS}


def _lane(worker: Worker, count: int) -> dict[str, Any]:
    return {
        "cluster_id": _NAME,
        "topic_id": _NAME,
        "partition": 0,
        "topic": worker.settings.topic,
        "planned_end": count * _OFFSETS,
        "opened_at": 1,
    }


def _write(worker: Worker, path: str) -> None:
    file = Path(worker.settings.lake) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"PAR1")


def _fill(worker: Worker, first: date, a_date: int, count: int) -> None:
    """The same rows in ClickHouse, a part a date."""
    database = worker.settings.clickhouse_database
    for kind, rows, shift in ((Kind.EVENTS, _ROWS, 0), (Kind.DEAD_LETTERS, 1, _ROWS)):
        worker.clickhouse.command(
            f"INSERT INTO {database}.{kind} (arrival_date, _topic, _offset, _batch_id) "
            f"SELECT toDate('{first}') + intDiv(batch, {a_date}), '{worker.settings.topic}', "
            f"batch * {_OFFSETS} + number % {rows} + {shift}, "
            "leftPad(lower(hex(batch)), 24, '0') "
            f"FROM (SELECT number, intDiv(number, {rows}) AS batch FROM numbers({count * rows})) "
            "SETTINGS max_partitions_per_insert_block = 0"
        )


@contextmanager
def statements(worker: Worker) -> Iterator[Counter[str]]:
    """Counts what the ledger and ClickHouse are asked meanwhile."""
    asked: Counter[str] = Counter()

    def ask(*_: Any) -> None:
        asked["ledger"] += 1

    client: Any = worker.clickhouse
    event.listen(worker.ledger, "before_cursor_execute", ask)
    for name in ("query", "command"):
        setattr(client, name, _counted(asked, getattr(client, name)))
    try:
        yield asked
    finally:
        event.remove(worker.ledger, "before_cursor_execute", ask)
        for name in ("query", "command"):
            delattr(client, name)


def _counted(asked: Counter[str], ask: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        asked["clickhouse"] += 1
        return ask(*given, **named)

    return counted


def measured(worker: Worker) -> tuple[Report, list[dict[str, Any]]]:
    """One housekeeping, and what each kind of it has cost."""
    costs: list[dict[str, Any]] = []

    def measure(step: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **named: Any) -> Any:
            begun = time.monotonic()
            with statements(worker) as asked:
                tally = step(*given, **named)
            seconds = round(time.monotonic() - begun, 2)
            costs.append(
                {"what": tally.what, "went": tally.count, "seconds": seconds, **asked}
                | {"kept": dict(tally.kept), "cut_short": tally.cut_short}
            )
            return tally

        return done

    names = [name for name in vars(house) if name.startswith(("let_go_of", "forget_"))]
    steps = {name: getattr(house, name) for name in names if name != "let_go_of_runs"}
    try:
        for name, step in steps.items():
            setattr(house, name, measure(step))
        return keep_house(worker, None), costs
    finally:
        for name, step in steps.items():
            setattr(house, name, step)


def _is_used(worker: Worker) -> bool:
    """Whether there is anything, or was: lanes stay when all batches are forgotten."""
    with worker.ledger.connect() as connection:
        planned_once = connection.execute(select(lanes).limit(1)).first() is not None
    topics = worker.settings.topics
    return planned_once or bool(states(worker.ledger, *topics) or dates_in(worker, Kind.EVENTS))


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--dates", default=400, show_default=True, help="How many dates.")
@click.option("--batches", default=4, show_default=True, help="Batches of each date.")
def main(dates: int, batches: int) -> None:
    settings = Settings(**KEEP)  # type: ignore[arg-type]
    worker = Worker(settings, open_ledger(settings.ledger), "bench", say=lambda line: None)
    if _is_used(worker):
        raise BenchFailed(
            "this home or database was used before, and what is in it would be let go of: give it "
            "a home and a database of its own"
        )
    make_old_dates(worker, dates, batches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, costs = measured(worker)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps({"kinds": costs, "peak_mb": after // 1024, "grown_mb": (after - before) // 1024})
    )


if __name__ == "__main__":
    run_command(main, "bench.old_dates")
