"""`tidemark projects`: who may send events."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project, list_projects, revoke_project
from orchestration.settings import Settings

MAX_PROJECT_ID = 2**31 - 1


@click.group()
def projects() -> None:
    """Make, list and revoke projects and their tokens."""


@projects.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def create(name: str, as_json: bool) -> None:
    """Make a project and print its token."""
    project = create_project(open_ledger(Settings().ledger), name)
    if as_json:
        print(json.dumps({"project_id": project.project_id, "token": project.token}))
    else:
        print(f"project {project.project_id} ({project.name})\ntoken   {project.token}")


@projects.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_(as_json: bool) -> None:
    """Print all projects."""
    found = list_projects(open_ledger(Settings().ledger))
    if as_json:
        print(json.dumps([asdict(project) for project in found]))
        return
    if not found:
        print("no projects yet: make one with `tidemark projects create NAME`")
    for project in found:
        created = datetime.fromtimestamp(project.created_at / 1e6, UTC)
        state = "revoked" if project.revoked_at else "good"
        print(
            f"{project.project_id:>6}  {state:7}  {created:%Y-%m-%d %H:%M}  "
            f"{project.token}  {project.name}"
        )


@projects.command()
@click.argument("project_id", type=click.IntRange(1, MAX_PROJECT_ID))
def revoke(project_id: int) -> None:
    """Make a project's token bad from now on."""
    project = revoke_project(open_ledger(Settings().ledger), project_id)
    print(f"project {project.project_id} ({project.name}) is revoked")
