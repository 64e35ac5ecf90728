"""Sends events with posthog 3.0.0: `python_2023.py HOST TOKEN EVENTS`; one JSON line at its end."""

from __future__ import annotations

import json
import sys
from typing import Any

from posthog.client import Client
from posthog.version import VERSION

given_up: list[int] = []


def failed(_: Exception, batch: list[dict[str, Any]]) -> None:
    """The SDK gives these events up."""
    given_up.extend(message["properties"]["n"] for message in batch)


host, token, events = sys.argv[1:]
client = Client(
    token, host=host, on_error=failed, max_retries=10, max_queue_size=int(events), thread=4
)
for n in range(int(events)):
    assert client.capture(f"p{n % 50}", "tick", {"n": n})[0], "the queue is full"
client.shutdown()
print(json.dumps({"version": VERSION, "given_up": given_up}))
