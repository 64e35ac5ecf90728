"""`tidemark settings`: every setting, its value now, its default and what it means."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestration.settings import SETTINGS_FILE, Settings
from orchestration.settings_in_force import (
    SettingsTrouble,
    settings_but_cadence,
    settings_in_force,
)
from orchestration.settings_trouble import misspelt, variable_of


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def settings(as_json: bool) -> None:
    """Print every setting: TIDEMARK_… variable, value, default, meaning."""
    in_force = settings_in_force()
    if in_force.trouble:
        raise SettingsTrouble(in_force.trouble)
    now = in_force.settings
    tell_misspelt(now.home)
    rows = [
        {
            "variable": variable_of(name),
            "value": now.shown(name),
            "default": str(field.get_default(call_default_factory=True)),
            "meaning": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        changed = "" if row["value"] == row["default"] else f"  (default {row['default'] or '–'})"
        print(f"{row['variable']}={row['value']}{changed}\n    {row['meaning']}")


def settings_at_hand() -> Settings:
    """The settings of a command that needs no cadence; what is wrong with one is said on stderr."""
    found = settings_but_cadence()
    if found.trouble:
        click.echo(f"tidemark: {found.trouble}", err=True)
    return found.settings


def tell_misspelt(home: Path) -> None:
    """Say on stderr which lines of settings.env set nothing, because no setting has that name."""
    for sentence in misspelt(home / SETTINGS_FILE, list(Settings.model_fields)):
        click.echo(f"tidemark: {sentence}", err=True)
