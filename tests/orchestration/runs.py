"""Runs of Tidemark's jobs in the test's own process."""

from __future__ import annotations

from datetime import date

import dagster as dg
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

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
