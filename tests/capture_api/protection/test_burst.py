"""A burst far beyond a project's limit, sent as PostHog's SDKs send it: all of it is taken.

The guard is the real one, with one worker or several; clients and clock are those of
`many_clients.py`. A limit of 400 events a second has a burst of 4,000, so that of 30 times the
limit 20 seconds' worth has to come again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest

from capture_api.projects import Projects
from capture_api.protection.guard import Guard
from capture_api.protection.shared import SYNC_SECONDS
from capture_api.refusal import Refused
from orchestration.settings import Settings
from tests.capture_api.protection.many_clients import (
    GO,
    GO_2025,
    GO_AS_IT_COMES,
    GO_IN_A_HURRY,
    NODE,
    PROJECT,
    PYTHON,
    RUST,
    Batch,
    Clock,
    Crowd,
    Sdk,
    lost,
)

RATE = 400
TIMES = 30
BATCHES = TIMES * RATE // 100
AGENT = "posthog-go/1.23.1"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"

NewCrowd = Callable[..., Crowd]


@pytest.fixture
def new_crowd(settings: Callable[..., Settings]) -> NewCrowd:
    """Makes a crowd before one worker, or before several that share nothing, or their limits."""

    def make(workers: int = 1, seed: int = 1, shared: bool = False) -> Crowd:
        clock = Clock()
        more = {"capture_redis_url": "redis://127.0.0.1:1/0"} if shared else {}
        found = settings(capture_project_events_per_second=RATE, **more)
        guards = [Guard(found, Projects(found), clock) for _ in range(workers)]
        return Crowd(guards, clock, seed)

    return make


def in_step(crowd: Crowd) -> Callable[[], None]:
    """What keeps the workers of a crowd in step, as often as Redis would."""
    last = 0.0

    def tell() -> None:
        nonlocal last
        if crowd.clock.now < last + SYNC_SECONDS:
            return
        last = crowd.clock.now
        for kind in ("_of_projects", "_waiting"):
            kinds = [getattr(guard, kind) for guard in crowd.guards]
            told = [dict(one.taken) for one in kinds]
            for one, taken in zip(kinds, told, strict=True):
                one.taken.clear()
                for other in kinds:
                    if other is not one:
                        for key, amount in taken.items():
                            other.drain(key, amount)

    return tell


def ends(batches: list[Batch]) -> float:
    """How many seconds after its first try the last of these batches was let in."""
    start = min(batch.first_tried for batch in batches)
    return max(batch.taken or math.inf for batch in batches) - start


@pytest.mark.parametrize("clients", [1, 4, 40])
@pytest.mark.parametrize(
    "sdk", [GO, GO_AS_IT_COMES, GO_IN_A_HURRY, GO_2025, RUST, PYTHON], ids=lambda sdk: sdk.name
)
def test_a_burst_is_taken_whole(new_crowd: NewCrowd, sdk: Sdk, clients: int) -> None:
    """Nothing is given up; and it takes little longer than at the rate it could."""
    crowd = new_crowd()
    for _ in range(clients):
        crowd.join(sdk, BATCHES // clients)
    crowd.run()
    assert lost(crowd.batches) == 0
    if sdk.heeds:
        assert ends(crowd.batches) <= 1.3 * (TIMES - 10)
        assert max(itertools.chain(*(batch.told for batch in crowd.batches))) <= 1.3 * (TIMES - 10)


def test_with_a_turn_of_its_own_each_comes_twice(new_crowd: NewCrowd) -> None:
    """Where nobody else comes meanwhile, nobody is refused a second time."""
    crowd = new_crowd()
    crowd.join(GO, BATCHES)
    crowd.run()
    assert max(batch.tried for batch in crowd.batches) == 2


def test_first_come_first_served(new_crowd: NewCrowd) -> None:
    """Who was refused first is let in first, but for the whole seconds that they are told.

    So equal clients that send side by side wait about as long as each other.
    """
    crowd = new_crowd()
    clients = [crowd.join(GO, BATCHES // 10, apart=0.05) for _ in range(10)]
    crowd.run()
    waits = []
    for client in clients:
        mine = [batch for batch in crowd.batches if batch.client == client]
        waits.append(sum((batch.taken or math.inf) - batch.first_tried for batch in mine))
    assert max(waits) <= 2 * min(waits)
    in_order = sorted(crowd.batches, key=lambda batch: batch.first_tried)
    waited = [batch for batch in in_order if batch.told]
    taken = [batch.taken or math.inf for batch in waited if batch.tried == 2]
    assert len(taken) >= 0.95 * len(waited), "hardly any loses its place to one that came later"
    assert all(later >= earlier - 1.1 for earlier, later in itertools.pairwise(taken))


def test_a_burst_beside_what_always_comes(new_crowd: NewCrowd) -> None:
    """A fifth of the limit, evenly, takes the place of nobody until they give up."""
    crowd = new_crowd()
    always = Sdk("posthog-php, no retries", 1, lambda _: 0.0)
    for number in range(60):
        crowd.join(always, 1, RATE // 5, at=float(number))
    for sdk in (GO_AS_IT_COMES, RUST):
        crowd.join(sdk, BATCHES // 2)
    crowd.run()
    assert lost(crowd.of(GO_AS_IT_COMES)) == lost(crowd.of(RUST)) == 0
    assert ends(crowd.of(GO_AS_IT_COMES)) <= 1.6 * (TIMES - 10)


def test_several_sdks_at_once(new_crowd: NewCrowd) -> None:
    """Those that wait as they are told lose nothing to those that do not."""
    crowd = new_crowd()
    for sdk, clients in ((GO_AS_IT_COMES, 2), (PYTHON, 8), (RUST, 1), (NODE, 4), (GO_2025, 1)):
        for _ in range(clients):
            crowd.join(sdk, BATCHES // 5 // clients)
    crowd.run()
    for sdk in (GO_AS_IT_COMES, PYTHON, RUST, GO_2025):
        assert lost(crowd.of(sdk)) == 0, sdk.name
    assert lost(crowd.batches) <= 0.02


def test_a_burst_beyond_the_longest_line(new_crowd: NewCrowd) -> None:
    """Who finds the line full comes again: a hundred times the limit needs a few tries more.

    They do not all come at the same moment.
    """
    crowd = new_crowd()
    crowd.join(GO, 100 * RATE // 100)
    moments: dict[int, int] = {}

    def count() -> None:
        moment = int(crowd.clock.now * 10)
        moments[moment] = moments.get(moment, 0) + 1

    crowd.run(count)
    assert lost(crowd.batches) == 0
    assert ends(crowd.batches) <= 1.1 * (100 - 10)
    first, *later = [moments[moment] for moment in sorted(moments)]
    assert first == 100 * RATE // 100
    assert max(later) < first / 4


@pytest.mark.parametrize("shared", [False, True], ids=["each its own", "shared"])
@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers(new_crowd: NewCrowd, workers: int, shared: bool) -> None:
    """Whichever worker a client comes back to: with limits of their own each takes its part."""
    crowd = new_crowd(workers, shared=shared)
    times = 1 if shared else workers
    crowd.join(GO, times * BATCHES)
    crowd.run(in_step(crowd) if shared else lambda: None)
    assert lost(crowd.batches) == 0
    assert ends(crowd.batches) <= 2 * (TIMES - 10)


def refusals(guard: Guard, agent: str | None, times: int) -> Iterator[int]:
    """What `Retry-After` so many requests of a hundred events are told."""
    for _ in range(times):
        with pytest.raises(Refused) as refused:
            guard.admit_events(PROJECT, 100, agent)
        assert refused.value.retry_after is not None
        assert f"in {refused.value.retry_after} s" in refused.value.detail
        yield refused.value.retry_after


def test_one_that_is_refused_after_a_quiet_time_hears_a_second(new_crowd: NewCrowd) -> None:
    """However large the burst before was, and however few of it came back."""
    crowd = new_crowd()
    (guard,), clock = crowd.guards, crowd.clock
    guard.admit_events(PROJECT, 10 * RATE, AGENT)
    assert list(refusals(guard, AGENT, 1000))[-1] > 20
    clock.now += 31
    guard.admit_events(PROJECT, 10 * RATE, AGENT)
    assert list(refusals(guard, AGENT, 1)) == [1]


@pytest.mark.parametrize("agent", [BROWSER, None])
def test_those_that_drop_what_is_refused_are_not_waited_for(
    new_crowd: NewCrowd, agent: str | None
) -> None:
    """Browsers, and whoever speaks protocol v1, do not come back."""
    (guard,) = new_crowd().guards
    guard.admit_events(PROJECT, 10 * RATE, AGENT)
    assert set(refusals(guard, agent, 1000)) == {1}
    assert list(refusals(guard, AGENT, 1)) == [1]


def test_a_dry_run_keeps_nobody_waiting(settings: Callable[..., Settings]) -> None:
    """Everybody is let in, so no line is to be there when limits are enforced."""
    found = settings(capture_project_events_per_second=RATE, capture_rate_limits="dry_run")
    guard = Guard(found, Projects(found))
    for _ in range(100):
        guard.admit_events(PROJECT, 10 * RATE, AGENT)
    assert len(guard._waiting) == 0
