"""`tidemark up` and `tidemark down`: the local stack in the background."""

from __future__ import annotations

import time
from pathlib import Path

import click

from local_stack import signals
from local_stack.processes import (
    AlreadyRunning,
    Foreground,
    Service,
    died,
    locked,
    running,
    start,
    stop_all,
    stop_foreground,
    wait_ready,
)
from local_stack.stack import START_LIMIT_S, addresses, start_stack
from orchestration.cli.settings import settings_at_hand, tell_misspelt
from orchestration.settings import Settings


@click.command()
@click.option("--detach", is_flag=True, help="Return when all is ready; `tidemark down` stops it.")
def up(detach: bool) -> None:
    """Start the local stack: Kafka, ClickHouse, the capture API, Dagster."""
    settings = Settings()
    tell_misspelt(settings.home)
    begun = time.monotonic()

    def announce(service: Service) -> None:
        click.echo(f"{time.monotonic() - begun:5.1f} s  {service.name} is ready", err=True)

    if not detach:
        with Foreground(settings.home, "tidemark up") as foreground:
            _refuse_running(settings.home)

            def wait(service: Service) -> None:
                foreground.wait_ready(service, START_LIMIT_S)
                announce(service)

            start_stack(settings, foreground.launch, wait)
            _say_where(settings, "Ctrl-C stops it")
            foreground.wait()

    with locked(settings.home, "tidemark up"), signals.leaving():
        _refuse_running(settings.home)

        def wait_detached(service: Service) -> None:
            wait_ready(service, settings.home, START_LIMIT_S)
            announce(service)

        try:
            start_stack(settings, lambda service: start(service, settings.home), wait_detached)
        except BaseException:
            with signals.held():
                stop_all(settings.home)
            raise
    _say_where(settings, "`make down` stops it")


def _refuse_running(home: Path) -> None:
    already = running(home)
    if not already:
        return
    names = ", ".join(record.name for record in already)
    dead = ", ".join(f"{record.name} (log: {record.log})" for record in died(home))
    if dead:
        raise AlreadyRunning(
            f"{names} of {home} run already, but {dead} died: `tidemark down`, "
            "then `tidemark up` mends it"
        )
    raise AlreadyRunning(
        f"{names} of {home} run already: `tidemark status` shows them, `tidemark down` stops them"
    )


def _say_where(settings: Settings, how_to_stop: str) -> None:
    click.echo(f"Tidemark is up ({how_to_stop}):")
    for name, address in addresses(settings):
        click.echo(f"  {name:12} {address}")


@click.command()
def down() -> None:
    """Stop the local stack."""
    settings = settings_at_hand()
    before = running(settings.home)
    ended = stop_foreground(settings.home)
    if ended is not None:
        names = ", ".join(record.name for record in before) or "no service yet"
        click.echo(f"{ended} ended, and with it {names}", err=True)
    with locked(settings.home, "tidemark down"):
        outcomes = stop_all(settings.home)
    for name, outcome in outcomes.items():
        click.echo(f"{name} {outcome}", err=True)
    if not outcomes and ended is None:
        click.echo(f"nothing of {settings.home} is running", err=True)
