"""`tidemark alarms`: what stands and what was lately over; `test` tries the webhook."""

from __future__ import annotations

import json
from dataclasses import replace

import click

from orchestration.alarms.webhook import WebhookFailed, body, post
from orchestration.cli.settings import settings_at_hand
from orchestration.cli.text import labelled
from orchestration.ledger.alarms import Alarm, last_alarms
from orchestration.ledger.connection import now_us, open_ledger
from orchestration.times import iso, utc_text

_SHOWN = 50


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def alarms(ctx: click.Context, as_json: bool) -> None:
    """List the alarms that stand and those lately over; `test` tries the webhook."""
    if ctx.invoked_subcommand is not None:
        return
    found = last_alarms(open_ledger(settings_at_hand().ledger), _SHOWN)
    if as_json:
        print(json.dumps([_document(alarm) for alarm in found]))
        return
    if not any(alarm.over_at is None for alarm in found):
        print("no alarm stands")
    for alarm in found:
        label = "ALARM" if alarm.over_at is None else "over"
        until = "" if alarm.over_at is None else f" until {utc_text(alarm.over_at)}"
        told = "" if _is_told(alarm) else " (not told yet)"
        times = f"{alarm.name}, since {utc_text(alarm.raised_at)}{until}{told}"
        print("\n".join([*labelled(label, times), *labelled("", alarm.text)]))


@alarms.command()
def test() -> None:
    """Post a test alarm to TIDEMARK_ALARM_WEBHOOK_URL."""
    settings = settings_at_hand()
    if not settings.alarm_webhook_url:
        raise click.ClickException("TIDEMARK_ALARM_WEBHOOK_URL is empty: alarms go to the log only")
    now = now_us()
    alarm = Alarm(0, "test", "a test of the webhook, nothing is wrong", now, now, None, None, None)
    try:
        for each in (alarm, replace(alarm, over_at=now)):
            post(settings.alarm_webhook_url, settings.alarm_webhook_headers, body([each]))
    except WebhookFailed as error:
        raise click.ClickException(str(error)) from None
    print("the webhook took it: a test alarm, and that it is over")


def _is_told(alarm: Alarm) -> bool:
    return (alarm.told_at if alarm.over_at is None else alarm.over_told_at) is not None


def _document(alarm: Alarm) -> dict[str, object]:
    return {
        "id": alarm.alarm_id,
        "name": alarm.name,
        "text": alarm.text,
        "raised_at": iso(alarm.raised_at),
        "over_at": iso(alarm.over_at),
        "told": _is_told(alarm),
    }
