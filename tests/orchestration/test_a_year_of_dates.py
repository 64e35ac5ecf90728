"""The first housekeeping over many dates: none costs more than another, and it goes on by days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event, func, select

from assets.pipeline.batch import Kind
from bench.old_dates import KEEP, make_old_dates, measured
from orchestration.housekeeping import tally as tally_module
from orchestration.housekeeping.keep_house import keep_house
from orchestration.ledger.let_go import marked_files
from orchestration.ledger.tables import attempts, batches, key_files, staged_files
from tests.stack import Stack

NewStack = Callable[..., Stack]

A_DATE = 2


@pytest.fixture
def old(new_stack: NewStack) -> Callable[[int], Stack]:
    """Makes stacks with so many old dates, of two batches each, and none to be kept."""

    def make(dates: int) -> Stack:
        stack = new_stack(kafka_bootstrap_servers="localhost:1", **KEEP)
        make_old_dates(stack.worker(), dates, A_DATE)
        return stack

    return make


def left(stack: Stack) -> list[int]:
    """How much there is still: rows of the ledger, of ClickHouse, files."""
    with stack.ledger.connect() as connection:
        ledger = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (batches, attempts, staged_files, key_files)
        ]
    rows = [
        stack.rows(f"SELECT count() FROM {{database}}.{kind}")[0][0]
        for kind in (Kind.EVENTS, Kind.DEAD_LETTERS)
    ]
    lake = Path(stack.settings.lake)
    return [*ledger, *rows, sum(path.is_file() for path in lake.rglob("*"))]


def mutations(stack: Stack) -> int:
    """How often ClickHouse was told to delete dead letters."""
    [(found,)] = stack.rows(
        "SELECT count() FROM system.mutations "
        "WHERE database = '{database}' AND table = 'dead_letters'"
    )
    return int(found)


def test_a_date_costs_the_same_however_many_there_are(old: Callable[[int], Stack]) -> None:
    """In statements; and rows of dead letters of several dates are deleted at once."""
    asked = {}
    for dates in (2, 6):
        stack = old(dates)
        _, costs = measured(stack.worker())
        assert left(stack) == [0] * 7
        asked[dates] = {cost["what"]: (cost["ledger"], cost.get("clickhouse", 0)) for cost in costs}
        # Each of which looks at every part of the table, so of a year's dates.
        assert mutations(stack) == 1
        assert {cost["what"]: cost["went"] for cost in costs} == {
            "replaced dates": 0,
            "staged files": A_DATE * dates,
            "dead letters": A_DATE * dates,
            "rows of events": 3 * A_DATE * dates,
            "files of the duplicate index": dates,
            "batches of the ledger": A_DATE * dates,
            "alarms and rebuilds that are over": 0,
        }
    for what, few in asked[2].items():
        for a_few, many in zip(few, asked[6][what], strict=True):
            assert many <= 3 * a_few, what


def test_what_has_no_time_is_done_by_the_next_days(
    old: Callable[[int], Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind stops when its time is over; nothing goes twice, and in the end all is gone."""
    stack = old(3)
    clock = count()
    ticks = SimpleNamespace(monotonic=lambda: next(clock) * 300.0)
    monkeypatch.setattr(tally_module, "time", ticks)
    went: Counter[str] = Counter()
    days = 0
    while True:
        days += 1
        report = keep_house(stack.worker(), None)
        went.update({tally.what: tally.count for tally in report.tallies})
        if not any(tally.cut_short for tally in report.tallies):
            break
    assert days > 2
    assert left(stack) == [0] * 7
    assert went["staged files"] == went["dead letters"] == went["batches of the ledger"] == 6
    assert (went["rows of events"], went["files of the duplicate index"]) == (18, 3)


def test_what_is_marked_is_found_without_a_look_at_every_batch(old: Callable[[int], Stack]) -> None:
    """As often as something is to be deleted, on a ledger of millions of files."""
    stack = old(1)
    asked: list[Any] = []

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        asked.append((statement, given))

    event.listen(stack.ledger, "before_cursor_execute", note)
    assert marked_files(stack.ledger, 9, list(Kind), *stack.settings.topics) == []
    event.remove(stack.ledger, "before_cursor_execute", note)
    [(statement, given)] = [each for each in asked if "staged_files" in each[0]]
    with stack.ledger.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given).all()
    told = [row[3] for row in plan]
    assert any("staged_files USING INDEX staged_files_marked" in line for line in told), told
    assert "SEARCH batches USING INDEX sqlite_autoindex_batches_1 (batch_id=?)" in told, told
