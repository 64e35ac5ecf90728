"""What the benchmarks are told in the same words, and what all of them say first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from bench.figures import describe, machine

Command = TypeVar("Command", bound=Callable[..., Any])

json_file = click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this file."
)


def limit(seconds: float) -> Callable[[Command], Command]:
    """After how long the whole benchmark is given up, unless somebody says otherwise."""
    return click.option(
        "--limit", default=seconds, show_default=True, help="Seconds until it is given up."
    )


storages = click.option(
    "--storage",
    "storages",
    multiple=True,
    type=click.Choice(["sqlite", "postgresql"]),
    default=["sqlite", "postgresql"],
    help="Dagster's storage; both unless said.",
)


def introduced() -> tuple[dict[str, Any], Console]:
    """The machine, and a console on which it is told."""
    facts, console = machine(), Console()
    console.print(describe(facts), highlight=False)
    return facts, console
