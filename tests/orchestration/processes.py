"""Dagster's real processes, for a with-block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from local_stack.processes import Service, start, stop_all, wait_ready
from orchestration.instance import open_instance
from orchestration.settings import Settings

START_LIMIT_S = 180.0


@contextmanager
def dagster_running(
    settings: Settings, services: Sequence[Service]
) -> Iterator[dg.DagsterInstance]:
    """Start them, and give their instance when they are ready; stopped afterwards."""
    try:
        for service in services:
            start(service, settings.home)
        for service in services:
            wait_ready(service, settings.home, START_LIMIT_S)
        with open_instance(settings) as instance:
            yield instance
    finally:
        stop_all(settings.home)
