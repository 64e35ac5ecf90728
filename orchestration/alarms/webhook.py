"""Webhook: alarms as one POST of JSON, in a form that chat services show as it is.

    {"text": "Tidemark: …",                 shown by Slack, Mattermost, Google Chat and their like
     "alarms": [{"id": "17", "state": "raised", "name": "held/…", "text": "…",
                 "raised_at": "2026-11-24T19:00:00+00:00", "over_at": null}]}

Anything but a 2xx means that it was not told, and is told again later. An `id` and a `state` are
told once but for a crash at the wrong moment; a receiver that cannot stand that keeps them.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from urllib.parse import urlsplit

from orchestration.addresses import without_secrets
from orchestration.ledger.alarms import Alarm
from orchestration.times import iso

_TIMEOUT_S = 10.0
_READ_OF_AN_ANSWER = 2_000  # bytes
_TOLD_OF_AN_ANSWER = 200  # characters


class WebhookFailed(Exception):
    """The webhook did not take it."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would be followed without the body: it is no 2xx, and counts as such."""

    def redirect_request(self, *_: object) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def body(alarms: Sequence[Alarm]) -> dict[str, object]:
    """What is posted of these alarms."""
    return {
        "text": "\n".join(map(line, alarms)),
        "alarms": [
            {
                "id": str(alarm.alarm_id),
                "state": _state(alarm),
                "name": alarm.name,
                "text": alarm.text,
                "raised_at": iso(alarm.raised_at, "seconds"),
                "over_at": iso(alarm.over_at, "seconds"),
            }
            for alarm in alarms
        ],
    }


def line(alarm: Alarm) -> str:
    """An alarm in one line, for a log or a chat."""
    if alarm.over_at is None:
        return f"Tidemark: {alarm.text}"
    return f"Tidemark: over since {iso(alarm.over_at, 'seconds')}: {alarm.text}"


def post(url: str, headers: Mapping[str, str], content: Mapping[str, object]) -> None:
    """Post it. Raises WebhookFailed unless the answer is a 2xx within ten seconds."""
    request = urllib.request.Request(
        url,
        json.dumps(content).encode(),
        {"Content-Type": "application/json", "User-Agent": "tidemark", **headers},
        method="POST",
    )
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S):
            return
    except urllib.error.HTTPError as error:
        said = ""
        with suppress(OSError, HTTPException):
            said = error.read(_READ_OF_AN_ANSWER).decode(errors="replace").strip()
        # Servers say back what was asked for, and a webhook's path is a password.
        said = without_secrets(said or error.reason, *_secrets(url, headers))
        raise WebhookFailed(
            f"the webhook answered {error.code}: {said[:_TOLD_OF_AN_ANSWER]}"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        why = without_secrets(str(getattr(error, "reason", None) or error), *_secrets(url, headers))
        raise WebhookFailed(f"the webhook cannot be reached: {why}") from None


def _secrets(url: str, headers: Mapping[str, str]) -> list[str]:
    parts = urlsplit(url)
    return [parts.path, parts.query, *headers.values()]


def _state(alarm: Alarm) -> str:
    return "raised" if alarm.over_at is None else "over"
