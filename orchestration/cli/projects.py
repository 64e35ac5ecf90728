"""`tidemark projects`: who may send events, with which tokens, and how many.

Wherever a project is asked for, its id and any of its tokens will do.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click
from sqlalchemy import Engine

from orchestration.cli.arguments import PROJECT, SPAN, WORDS
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.ledger.projects import (
    MAX_BURST,
    MAX_DAILY_QUOTA,
    NO_LIMITS,
    Limits,
    RetiredToken,
    all_limits,
    create_project,
    find_project,
    list_projects,
    list_retired_tokens,
    revoke_project,
    rotate_token,
    set_limits,
)
from orchestration.ledger.usage import usage_of
from orchestration.times import utc

as_one_document = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def projects() -> None:
    """Make, list, limit, rotate and revoke projects and their tokens."""


@projects.command()
@click.argument("name", type=WORDS)
@as_one_document
def create(name: str, as_json: bool) -> None:
    """Make a project and print its token."""
    project = create_project(_ledger(), name)
    if as_json:
        print(json.dumps({"project_id": project.project_id, "token": project.token}))
    else:
        print(f"project {project.project_id} ({project.name})\ntoken   {project.token}")


@projects.command("list")
@as_one_document
def list_(as_json: bool) -> None:
    """Print all projects: state, token, limits of their own, events of today (UTC)."""
    ledger = _ledger()
    found = list_projects(ledger)
    limits = all_limits(ledger)
    used = usage_of(ledger, datetime.now(UTC).date())
    retired = _good_retired_tokens(ledger)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        **asdict(project),
                        "state": _state(project.revoked_at),
                        "limits": asdict(limits.get(project.project_id, NO_LIMITS)),
                        "events_today": used.get(project.project_id, 0),
                        "retired_tokens": [
                            {"token": old.token, "good_until": old.good_until}
                            for old in retired.get(project.project_id, [])
                            if project.revoked_at is None
                        ],
                    }
                    for project in found
                ]
            )
        )
        return
    if not found:
        print("no projects yet: make one with `tidemark projects create NAME`")
    for project in found:
        print(
            f"{project.project_id:>6}  {_state(project.revoked_at):7}  "
            f"{_minute(project.created_at)}  {project.token}  "
            f"{used.get(project.project_id, 0):>12,} today  {project.name}"
        )
        own = limits.get(project.project_id)
        if own:
            print(f"        {_described(own)}")
        if project.revoked_at is None:
            for old in retired.get(project.project_id, []):
                print(f"        until {_minute(old.good_until)} UTC also {old.token}")


@projects.command()
@click.argument("project", type=PROJECT)
def revoke(project: str) -> None:
    """Make all tokens of a project bad from now on."""
    ledger = _ledger()
    revoked = revoke_project(ledger, find_project(ledger, project).project_id)
    print(f"project {revoked.project_id} ({revoked.name}) is revoked")


@projects.command()
@click.argument("project", type=PROJECT)
@click.option(
    "--grace",
    type=SPAN,
    default="24h",
    show_default=True,
    help="How long the old token stays good: 90s, 30m, 24h, 7d; 0 ends every old token at once.",
)
@as_one_document
def rotate(project: str, grace: int, as_json: bool) -> None:
    """Give a project a new token and print it; the old one is good until the grace is over."""
    ledger = _ledger()
    rotated, old = rotate_token(ledger, find_project(ledger, project).project_id, grace)
    if as_json:
        print(
            json.dumps(
                {
                    "project_id": rotated.project_id,
                    "token": rotated.token,
                    "old_token": old.token,
                    "old_token_good_until": old.good_until,
                }
            )
        )
        return
    print(f"project {rotated.project_id} ({rotated.name})\ntoken   {rotated.token}")
    if grace:
        print(f"the old token {old.token} is good until {_minute(old.good_until)} UTC")
    else:
        print(f"the old token {old.token} is bad from now on")


@projects.command()
@click.argument("project", type=PROJECT)
@click.option(
    "--events-per-second",
    type=click.FloatRange(min=0),
    help="Events a second that it may send, over time; 0: any number.",
)
@click.option(
    "--burst",
    type=click.IntRange(0, MAX_BURST),
    help="Events that it may send at once, on top of the rate; 0: those of ten seconds.",
)
@click.option(
    "--daily-quota",
    type=click.IntRange(0, MAX_DAILY_QUOTA),
    help="Events that it may send a UTC day; 0: any number.",
)
@click.option("--clear", is_flag=True, help="First forget its own limits: the settings apply.")
@as_one_document
def limit(
    project: str,
    events_per_second: float | None,
    burst: int | None,
    daily_quota: int | None,
    clear: bool,
    as_json: bool,
) -> None:
    """Set limits of a project's own, or print them. What is not named stays as it is."""
    ledger = _ledger()
    found = find_project(ledger, project)
    before = all_limits(ledger).get(found.project_id, NO_LIMITS)
    kept = NO_LIMITS if clear else before
    own = Limits(
        kept.events_per_second if events_per_second is None else events_per_second,
        kept.burst if burst is None else burst,
        kept.daily_quota if daily_quota is None else daily_quota,
    )
    if own != before:
        set_limits(ledger, found.project_id, own)
    if as_json:
        print(json.dumps({"project_id": found.project_id, **asdict(own)}))
    else:
        print(f"project {found.project_id} ({found.name}): {_described(own)}")


def _ledger() -> Engine:
    return open_ledger(settings_at_hand().ledger)


def _good_retired_tokens(ledger: Engine) -> dict[int, list[RetiredToken]]:
    """The old tokens that are good now, per project."""
    now = now_us()
    found: dict[int, list[RetiredToken]] = {}
    for old in list_retired_tokens(ledger):
        if old.good_until > now:
            found.setdefault(old.project_id, []).append(old)
    return found


def _state(revoked_at: int | None) -> str:
    return "revoked" if revoked_at else "good"


def _minute(at: int) -> str:
    return f"{utc(at):%Y-%m-%d %H:%M}"


def _described(limits: Limits) -> str:
    """The limits in words."""
    if limits == NO_LIMITS:
        return "no limits of its own, the settings apply"
    parts = []
    rate, burst, quota = limits.events_per_second, limits.burst, limits.daily_quota
    if rate is not None:
        parts.append(f"{rate:,g} events a second" if rate else "any number of events a second")
    if burst is not None:
        parts.append(f"{burst:,} at once" if burst else "those of ten seconds at once")
    if quota is not None:
        parts.append(f"{quota:,} events a day" if quota else "any number of events a day")
    return ", ".join(parts)
