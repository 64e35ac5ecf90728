"""`tidemark demo`: the whole way of an event, proved, from one command."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console

from orchestration.cli import EXIT_NOT_BALANCED
from orchestration.demo.run import demo_settings, run_demo


@click.command()
@click.option(
    "--events",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Events the SDK sends.",
)
@click.option("--cadence", default="10s", show_default=True, help="How often micro-batches run.")
@click.option("--keep", is_flag=True, help="Stay until Ctrl-C, to look around in the Dagster UI.")
def demo(events: int, cadence: str, keep: bool) -> None:
    """Start everything, send events with the real SDK, load them, prove the balance, clean up."""
    begun = time.monotonic()
    console = Console()
    settings = demo_settings(cadence)
    outcome = run_demo(settings, events, console, keep)
    if outcome.problems:
        console.print(f"[red]It does NOT balance. Logs and data are kept in {settings.home}")
        for problem in outcome.problems:
            console.print(f"[red]  {problem}")
        sys.exit(EXIT_NOT_BALANCED)
    console.print(
        f"[green]Balance proved: {outcome.account.loaded:,} events, none lost, none doubled, "
        f"in {time.monotonic() - begun:.0f} s. Nothing is left running."
    )
