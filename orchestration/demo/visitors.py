"""The demo's events: what a small web shop and its backend would send, the same every time."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_SEED = 20
_PAGES = ["/", "/pricing", "/docs", "/blog/exactly-once", "/shop", "/shop/cart", "/über-uns"]
_SOURCES = [
    "",
    "?utm_source=newsletter&utm_medium=email&utm_campaign=spring%20sale",
    "?utm_source=ads",
]
_DEVICES = [
    ("Chrome", "Mac OS X", "Desktop"),
    ("Firefox", "Windows", "Desktop"),
    ("Mobile Safari", "iOS", "Mobile"),
    ("Chrome", "Android", "Mobile"),
]
_PRODUCTS = ["tide table", "sextant", "船の模型", "compass 🧭", "log book"]


@dataclass(frozen=True)
class DemoEvent:
    """One event for the SDK."""

    event: str
    distinct_id: str
    uuid: uuid.UUID
    timestamp: datetime
    properties: dict[str, Any]


def demo_events(count: int) -> Iterator[DemoEvent]:
    """So many events of some hundred visitors during the last hour."""
    chance = random.Random(_SEED)
    end = datetime.now(UTC)
    visitors = max(1, count // 25)
    for number in range(count):
        visitor = chance.randrange(visitors)
        browser, system, device = _DEVICES[visitor % len(_DEVICES)]
        page = chance.choice(_PAGES)
        common = {
            "$browser": browser,
            "$os": system,
            "$device_type": device,
            "$session_id": f"session-{visitor}-{number // 2000}",
            "$current_url": f"https://shop.example.com{page}{chance.choice(_SOURCES)}",
        }
        event, extra = _what_happened(chance, visitor)
        yield DemoEvent(
            event=event,
            distinct_id=f"visitor-{visitor}@example.com" if visitor % 3 else f"anon-{visitor}",
            uuid=uuid.uuid4(),
            timestamp=end - timedelta(seconds=chance.uniform(0, 3600)),
            properties=common | extra,
        )


def _what_happened(chance: random.Random, visitor: int) -> tuple[str, dict[str, Any]]:
    kind = chance.random()
    if kind < 0.55:
        return "$pageview", {"$referrer": "https://search.example.org/"}
    if kind < 0.75:
        return "$autocapture", {"$event_type": "click", "elements": [{"tag": "a", "nth": 2}]}
    if kind < 0.87:
        return "product viewed", {"product": chance.choice(_PRODUCTS), "price": 19.9}
    if kind < 0.93:
        items = [
            {"name": chance.choice(_PRODUCTS), "quantity": chance.randint(1, 4)}
            for _ in range(chance.randint(1, 5))
        ]
        return "order paid", {"items": items, "total": round(chance.uniform(5, 500), 2)}
    if kind < 0.98:
        return "$identify", {"$set": {"plan": chance.choice(["free", "pro"]), "visitor": visitor}}
    return "signed up", {"plan": "free", "note": "x" * chance.randint(0, 4000)}
