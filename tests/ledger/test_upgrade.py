"""A ledger of an older version is upgraded by whoever opens it, however often that is cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, event, inspect, select

from assets.pipeline.batch import Making, Range
from orchestration.ledger import rebuilds, upgrade
from orchestration.ledger.batches import record_plan
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.leases import held_lease
from orchestration.ledger.remakes import Remake, note_remake
from orchestration.ledger.rules import Action, add_rule
from orchestration.ledger.tables import metadata
from tests.ledger.older import make_older
from tests.staging import DAY, batch_of

WRITING = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE")
AT_ONCE = 3


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture
def held(ledger: Engine) -> dict[str, list[Any]]:
    """Rows of some tables, of which one names another's; gives them by table."""
    add_rule(ledger, Action.DROP, event="noise")
    batch = batch_of(Range(0, 0, 3))
    with held_lease(ledger, "topic/events", 60) as lease:
        record_plan(ledger, lease, batch)
        rebuild = rebuilds.begin(ledger, lease, "events", DAY, "run")
        making = Making((), {}, 0, "1")
        note_remake(ledger, lease, Remake(rebuild.rebuild_id, batch.batch_id, making, None))
    return rows_of(ledger)


def rows_of(ledger: Engine) -> dict[str, list[Any]]:
    """All that the ledger holds but leases."""
    with ledger.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table))]
            for table in metadata.sorted_tables
            if table.name not in ("leases", "backoffs")
        }


def shape_of(ledger: Engine) -> dict[str, Any]:
    """Tables as they are: columns, whose order does not matter, and indexes."""
    looked_at = inspect(ledger)
    shape: dict[str, Any] = {
        f"{kind} of {name}": {each["name"]: str(each.get("type", "")) for each in found}
        for kind, of in (
            ("columns", looked_at.get_multi_columns()),
            ("indexes", looked_at.get_multi_indexes()),
        )
        for (_, name), found in of.items()
    }
    if ledger.dialect.name == "sqlite":
        with ledger.connect() as connection:
            made = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master").all()
            shape["numbered"] = {name for name, sql in made if sql and "AUTOINCREMENT" in sql}
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    return shape


@contextmanager
def crash_at(number: int) -> Iterator[list[str]]:
    """Crash before the so many-th statement that writes; gives what was written until then."""
    written: list[str] = []

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(WRITING):
            if len(written) == number:
                raise Crash
            written.append(statement)

    event.listen(Engine, "before_cursor_execute", look)
    try:
        yield written
    finally:
        event.remove(Engine, "before_cursor_execute", look)


def test_a_crash_at_each_statement_leaves_a_ledger_that_can_be_upgraded(
    ledger: Engine, ledger_url: str, held: dict[str, list[Any]]
) -> None:
    """Every row is there, and every table as a new ledger has it."""
    wanted = shape_of(ledger)
    for number in range(100):
        make_older(ledger)
        assert shape_of(ledger) != wanted
        with crash_at(number) as written:
            try:
                open_ledger(ledger_url).dispose()
            except Crash:
                crashed = True
            else:
                crashed = False
        open_ledger(ledger_url).dispose()
        assert shape_of(ledger) == wanted, written
        assert rows_of(ledger) == held, written
        if not crashed:
            break
    assert not crashed
    assert number == len(written) > 7


def test_processes_that_open_it_at_once_do_not_meet(
    ledger: Engine,
    ledger_url: str,
    held: dict[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All have looked at what is missing before one of them adds it."""
    wanted = shape_of(ledger)
    make_older(ledger)
    barrier = Barrier(AT_ONCE)

    def then_wait(look: Callable[[Engine], Any]) -> Callable[[Engine], Any]:
        def looked(engine: Engine) -> Any:
            found = look(engine)
            barrier.wait(60)
            return found

        return looked

    for name in ("_due", "_whose_ids_come_again"):
        monkeypatch.setattr(upgrade, name, then_wait(getattr(upgrade, name)))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for engine in pool.map(open_ledger, [ledger_url] * AT_ONCE):
            engine.dispose()
    assert shape_of(ledger) == wanted
    assert rows_of(ledger) == held


def test_processes_that_make_it_at_once_do_not_meet(ledger: Engine, ledger_url: str) -> None:
    """Of an empty database."""
    wanted = shape_of(ledger)
    with ledger.begin() as connection:
        metadata.drop_all(connection)
    barrier = Barrier(AT_ONCE)

    def make(_number: int) -> None:
        barrier.wait(60)
        open_ledger(ledger_url).dispose()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(make, range(AT_ONCE)))
    assert shape_of(ledger) == wanted
