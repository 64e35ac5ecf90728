"""The whole of Tidemark on one machine: which services there are, and how they start.

    kafka, clickhouse ──ready──▶ topics, tables ──▶ capture API, Dagster webserver and daemon

A service that the settings say is elsewhere (TIDEMARK_KAFKA_BOOTSTRAP_SERVERS,
TIDEMARK_CLICKHOUSE_URL) is not started here, only used.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from assets.pipeline.clickhouse import connect, make_tables
from local_stack.kafka.topics import ensure_topic, unready_reason
from local_stack.ports import Port
from local_stack.processes import Service
from orchestration.addresses import public_address
from orchestration.instance import prepare_instance
from orchestration.ledger.connection import open_ledger
from orchestration.services import dagster_services
from orchestration.settings import Settings

START_LIMIT_S = 180.0
"""Seconds a service has to become ready; the first start fetches Kafka's jars."""

_PROBE_LIMIT_S = 2.0
_REPOSITORY = Path(__file__).resolve().parent.parent


def engines(settings: Settings) -> list[Service]:
    """Kafka and ClickHouse, as far as they are to be local."""
    services = []
    if not settings.kafka_bootstrap_servers:
        services.append(
            Service(
                name="kafka",
                argv=_module(
                    "local_stack.kafka",
                    *("--home", str(settings.home), "--port", str(settings.kafka_port)),
                ),
                ready=lambda: unready_reason(settings.bootstrap_servers),
                ports=[Port(settings.kafka_port, "TIDEMARK_KAFKA_PORT")],
                cwd=_REPOSITORY,
            )
        )
    if not settings.clickhouse_url:
        services.append(
            Service(
                name="clickhouse",
                argv=_module(
                    "local_stack.clickhouse",
                    *("--data", str(settings.home / "clickhouse")),
                    *("--port", str(settings.clickhouse_port)),
                    *("--user", settings.clickhouse_user),
                ),
                env={"CLICKHOUSE_PASSWORD": settings.clickhouse_password},
                ready=answers(f"{settings.clickhouse_address}/ping"),
                ports=[Port(settings.clickhouse_port, "TIDEMARK_CLICKHOUSE_PORT")],
                cwd=_REPOSITORY,
            )
        )
    return services


def edges(settings: Settings) -> list[Service]:
    """The capture API and Dagster, which need the engines."""
    capture = Service(
        name="capture",
        argv=_module("capture_api"),
        env=settings.environment(),
        ready=answers(f"{settings.capture_address}/_readiness"),
        ports=[Port(settings.capture_port, "TIDEMARK_CAPTURE_PORT")],
        cwd=_REPOSITORY,
    )
    dagster = [
        replace(service, env={**settings.environment(), **service.env})
        for service in dagster_services(settings)
    ]
    return [capture, *dagster]


def start_stack(
    settings: Settings,
    launch: Callable[[Service], object],
    wait: Callable[[Service], object],
) -> None:
    """Start everything, side by side where one does not need the other, and wait until it answers.

    `launch` starts a service, `wait` returns when it is ready; both raise StackError.
    """
    prepare_instance(settings)  # now, rather than when the engines are there
    first = engines(settings)
    for service in first:
        launch(service)
    for service in first:
        wait(service)
    make_ready(settings)
    second = edges(settings)
    for service in second:
        launch(service)
    for service in second:
        wait(service)


def make_ready(settings: Settings) -> None:
    """What the edges find in place: the topics, the tables and the ledger."""
    for topic in settings.topics:
        ensure_topic(
            settings.bootstrap_servers,
            topic,
            settings.kafka_partitions,
            replication_factor=settings.kafka_replication_factor,
            client_settings=settings.kafka_options,
        )
    client = connect(
        settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
    )
    make_tables(client, settings.clickhouse_database)
    client.close()
    open_ledger(settings.ledger).dispose()


def addresses(settings: Settings) -> list[tuple[str, str]]:
    """What a person opens or points an SDK at: (name, address)."""
    return [
        ("Dagster UI", settings.dagster_address),
        ("capture API", settings.capture_address),
        ("ClickHouse", public_address(settings.clickhouse_address)),
        ("Kafka", settings.bootstrap_servers),
        ("lake", public_address(settings.lake)),
    ]


def answers(url: str) -> Callable[[], str | None]:
    """A readiness probe: None once the address answers 200, else what it says."""

    def probe() -> str | None:
        try:
            with urllib.request.urlopen(url, timeout=_PROBE_LIMIT_S) as answer:
                return None if answer.status == 200 else f"{url} answers {answer.status}"
        except urllib.error.HTTPError as error:
            return f"{url} answers {error.code}: {error.read(300).decode(errors='replace')}"
        except OSError as error:
            return f"{url}: {error}"

    return probe


def _module(name: str, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", name, *arguments]
