"""Many clients of one project against the guard itself, on a clock that jumps to what is next.

Each client sends batches as an SDK of PostHog's does: how many tries, what it waits after each, and
whether `Retry-After` makes it wait longer. Which SDK does what stands in docs/sdks.md.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from capture_api.protection.guard import Guard
from capture_api.refusal import Refused

PROJECT = 7


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Sdk:
    """What an SDK does with a batch that is refused."""

    name: str
    tries: int
    pause: Callable[[int], float]
    """Its own seconds before the next try, after so many."""
    heeds: bool = True
    """Whether `Retry-After` makes that longer."""
    at_once: bool = True
    """Whether its batches go out side by side; else each waits for the one before it."""

    def wait(self, tried: int, retry_after: float) -> float:
        """The seconds before the next try."""
        own = self.pause(tried)
        return max(own, min(retry_after, 30)) if self.heeds else own


GO = Sdk("posthog-go, MaxRetries 9", 10, lambda tried: min(0.1 * 2 ** (tried - 1), 30))
GO_AS_IT_COMES = Sdk("posthog-go", 4, GO.pause)
GO_IN_A_HURRY = Sdk("posthog-go, MaxRetries 9, RetryAfter 100 ms", 10, lambda _: 0.1)
GO_2025 = Sdk("posthog-go 1.5.2", 10, lambda tried: min(0.1 * 2 ** (tried - 1), 10), heeds=False)
RUST = Sdk("posthog-rs", 3, lambda tried: min(0.2 * 2 ** (tried - 1), 30))
PYTHON = Sdk("posthog", 4, lambda tried: min(2 ** (tried - 1), 30), at_once=False)
NODE = Sdk("posthog-node", 4, lambda _: 3.0, heeds=False, at_once=False)


@dataclass
class Batch:
    """A batch, and what became of it."""

    client: int
    sdk: Sdk
    events: int
    first_tried: float = 0.0
    tried: int = 0
    told: list[int] = field(default_factory=list)
    """What `Retry-After` it was answered with."""
    taken: float | None = None
    """When it was let in."""


class Crowd:
    """Clients, and the workers that each of their requests may come to."""

    def __init__(self, guards: Sequence[Guard], clock: Clock, seed: int = 1) -> None:
        self.guards, self.clock = guards, clock
        self.random = random.Random(seed)
        self.batches: list[Batch] = []
        self._next: list[tuple[float, int, Batch]] = []
        self._behind: dict[int, list[Batch]] = {}
        self._order = itertools.count()
        self._clients = itertools.count()

    def join(
        self, sdk: Sdk, batches: int, events: int = 100, at: float = 0.0, apart: float = 0.0
    ) -> int:
        """One more client, which has so many batches to send from then on; its number.

        `apart` are the seconds between two, where they go out side by side.
        """
        client = next(self._clients)
        mine = [Batch(client, sdk, events) for _ in range(batches)]
        self.batches += mine
        first = mine if sdk.at_once else mine[:1]
        self._behind[client] = [] if sdk.at_once else mine[1:]
        for number, batch in enumerate(first):
            self._post(batch, self.clock.now + at + number * apart)
        return client

    def run(self, before: Callable[[], None] = lambda: None) -> None:
        """Until each batch is let in or given up. `before` is called before each request."""
        while self._next:
            self.clock.now, _, batch = heapq.heappop(self._next)
            before()
            self._try(batch)

    def of(self, sdk: Sdk) -> list[Batch]:
        """The batches that clients with this SDK had."""
        return [batch for batch in self.batches if batch.sdk is sdk]

    def _post(self, batch: Batch, at: float) -> None:
        on_its_way = self.random.uniform(0.001, 0.02)
        heapq.heappush(self._next, (at + on_its_way, next(self._order), batch))

    def _try(self, batch: Batch) -> None:
        now = self.clock.now
        batch.first_tried = batch.first_tried or now
        batch.tried += 1
        try:
            self.random.choice(self.guards).admit_events(PROJECT, batch.events, batch.sdk.name)
        except Refused as refused:
            told = refused.retry_after or 0
            batch.told.append(told)
            if batch.tried < batch.sdk.tries:
                self._post(batch, now + batch.sdk.wait(batch.tried, told))
                return
        else:
            batch.taken = now
        behind = self._behind[batch.client]
        if behind:
            self._post(behind.pop(0), now)


def lost(batches: Sequence[Batch]) -> float:
    """The share of these batches that was given up."""
    return sum(batch.taken is None for batch in batches) / len(batches)
