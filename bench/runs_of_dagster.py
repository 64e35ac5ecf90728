"""When a Dagster run was asked for and when its process was at work, asked of the webserver."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass

from bench.errors import BenchFailed

_LIMIT_S = 10.0
_QUERY = """
query Times($id: ID!) { runOrError(runId: $id) { __typename ... on Run {
    creationTime startTime endTime } } }
"""


@dataclass(frozen=True)
class RunTimes:
    """Seconds since 1970."""

    created: float
    """A tick decided for it."""
    started: float
    """Its process has loaded the code and begins."""


def run_times(address: str, run_id: str) -> RunTimes:
    """The times of one run. Raises BenchFailed when Dagster does not know it."""
    request = urllib.request.Request(
        f"{address}/graphql",
        data=json.dumps({"query": _QUERY, "variables": {"id": run_id}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_LIMIT_S) as response:
        run = json.load(response)["data"]["runOrError"]
    if run["__typename"] != "Run" or run["startTime"] is None:
        raise BenchFailed(f"Dagster does not tell when run {run_id} began: {run}")
    return RunTimes(run["creationTime"], run["startTime"])
