"""Dagster's webserver, asked over GraphQL by the start-up probes, the demo and the benchmarks."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Any

_ANSWER_LIMIT_S = 10.0

_RUN = """
query Times($id: ID!) { runOrError(runId: $id) { __typename ... on Run {
    creationTime startTime endTime } } }
"""


class WebserverSilent(Exception):
    """The webserver did not answer, or not what was asked."""


@dataclass(frozen=True)
class RunTimes:
    """When a run was asked for, when its process was at work, and when it was over.

    Seconds since 1970; `ended` is None while it runs.
    """

    created: float
    started: float
    ended: float | None


def ask(address: str, query: str, **variables: str) -> dict[str, Any]:
    """The data that answers a query. Raises WebserverSilent."""
    request = urllib.request.Request(
        f"{address}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_LIMIT_S) as response:
            answer: dict[str, Any] = json.load(response)["data"]
            return answer
    except (OSError, ValueError, KeyError) as error:
        raise WebserverSilent(f"{address}: {error}") from error


def run_times(address: str, run_id: str) -> RunTimes:
    """The times of one run. Raises WebserverSilent when Dagster does not know them."""
    run = ask(address, _RUN, id=run_id)["runOrError"]
    if run["__typename"] != "Run" or run["startTime"] is None:
        raise WebserverSilent(f"Dagster does not tell when run {run_id} began: {run}")
    return RunTimes(run["creationTime"], run["startTime"], run["endTime"])
