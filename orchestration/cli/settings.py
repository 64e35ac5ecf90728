"""`tidemark settings`: every setting, its value now, its default and what it means."""

from __future__ import annotations

import json

import click

from orchestration.settings import Settings
from orchestration.settings_in_force import SettingsTrouble, settings_in_force


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def settings(as_json: bool) -> None:
    """Print every setting: TIDEMARK_… variable, value, default, meaning."""
    in_force = settings_in_force()
    if in_force.trouble:
        raise SettingsTrouble(in_force.trouble)
    now = in_force.settings
    rows = [
        {
            "variable": f"TIDEMARK_{name.upper()}",
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
