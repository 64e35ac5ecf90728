"""The real parts that a benchmark needs, in a temporary home on free ports, for a with-block.

Data flow: a folder → settings that point at nothing but it → a started Kafka or ClickHouse, and the
pid to measure. Every measured run gets a ClickHouse of its own, so that one run's merges, caches
and peak are never counted with another's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.children import Deadline
from local_stack.ports import free_port
from local_stack.processes import Foreground, Service
from local_stack.stack import START_LIMIT_S, engines
from orchestration.settings import Settings


@dataclass(frozen=True)
class Part:
    """A started service: how to reach it, and which process it is."""

    settings: Settings
    pid: int


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A folder that is gone afterwards, whatever was written into it."""
    with tempfile.TemporaryDirectory(prefix="tidemark-bench-") as folder:
        yield Path(folder)


def bench_settings(home: Path, **own: Any) -> Settings:
    """Settings of a local stack in this home, on free ports.

    What the environment says about other places is left aside; what it says about the work
    itself (say TIDEMARK_BATCH_MAX_BYTES) counts.
    """
    given = Settings()
    local = {
        "home": home,
        "kafka_bootstrap_servers": "",
        "kafka_options": {},
        "kafka_replication_factor": 1,
        "clickhouse_url": "",
        "clickhouse_password": "",
        "lake_uri": "",
        "ledger_url": "",
        "dagster_storage_url": "",
    }
    ports = {
        name: free_port(getattr(given, name))
        for name in ("kafka_port", "clickhouse_port", "capture_port", "dagster_port")
    }
    return Settings(**(given.model_dump() | local | ports | own))


@contextmanager
def local_kafka(home: Path) -> Iterator[Part]:
    """A Kafka broker in the folder `kafka` of this home."""
    with _engine("kafka", bench_settings(home / "kafka")) as part:
        yield part


@contextmanager
def local_clickhouse(home: Path, bootstrap_servers: str, **own: Any) -> Iterator[Part]:
    """A fresh ClickHouse in this home; its settings name that Kafka, and what `own` says."""
    settings = bench_settings(home, kafka_bootstrap_servers=bootstrap_servers, **own)
    with _engine("clickhouse", settings) as part:
        yield part


@contextmanager
def local_dagster(
    settings: Settings,
    services: Sequence[Service],
    deadline: Deadline,
    env: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[dict[str, int]]:
    """Dagster's processes over these settings, with `env` besides; gives their pids by name."""
    environment = settings.environment()
    services = [replace(service, env={**environment, **service.env, **env}) for service in services]
    with Foreground(settings.home, "a benchmark") as foreground:
        pids = {service.name: foreground.launch(service).pid for service in services}
        for service in services:
            foreground.wait_ready(service, min(START_LIMIT_S, deadline.left_s()))
        yield pids


@contextmanager
def _engine(name: str, settings: Settings) -> Iterator[Part]:
    service = next(service for service in engines(settings) if service.name == name)
    with Foreground(settings.home, "a benchmark") as foreground:
        record = foreground.launch(service)
        foreground.wait_ready(service, START_LIMIT_S)
        yield Part(settings, record.pid)
