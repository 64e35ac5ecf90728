"""Runs of Tidemark's jobs in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import dagster as dg
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from orchestration.definitions import definitions
from tests.stack import Stack


def run(
    stack: Stack,
    instance: dg.DagsterInstance,
    day: date,
    job: str = "micro_batch",
    *assets: str,
) -> ExecuteInProcessResult:
    """A run for a date, to its end."""
    return (
        definitions(stack.settings)
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            partition_key=day.isoformat(),
            raise_on_error=False,
            asset_selection=[dg.AssetKey(name) for name in assets] or None,
        )
    )


@contextmanager
def statements(of: str) -> Iterator[list[str]]:
    """What databases are asked meanwhile, as far as it names a table."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if of in statement:
            asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def storage_is_away(*_given: object) -> None:
    """In the place of what asks Dagster's storage, or the ledger."""
    raise OperationalError("SELECT 1", {}, Exception("database is locked"))


def storage_is_away_long(*_given: object) -> None:
    """The same as Dagster's PostgreSQL says it, which has tried again by itself."""
    try:
        storage_is_away()
    except OperationalError as error:
        raise DagsterPostgresException("too many retries for DB connection") from error
