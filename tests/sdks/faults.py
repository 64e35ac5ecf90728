"""The faults that the tests of all SDKs send through, and a broker that dies in between."""

from __future__ import annotations

from collections.abc import Callable

from capture_api.ingest import INGEST_PATHS
from capture_api.v1.endpoint import V1_PATHS
from tests.faulty_proxy import Fault, FaultyProxy, Plan, dealt
from tests.sdks.conftest import Way

DECK = {
    Fault.NONE: 13,
    Fault.UNAVAILABLE: 1,
    Fault.UNAVAILABLE_LATER: 1,
    Fault.RESET_BEFORE: 1,
    Fault.RESET_AFTER: 2,
    Fault.DELAY: 1,
}
"""Of so many requests, in any order."""

EVENT_PATHS = (*INGEST_PATHS, *V1_PATHS)


def faults(seed: int) -> Plan:
    """About every third request of events is spoilt, the first one in the worst way."""
    return dealt(seed, DECK, EVENT_PATHS, first=[Fault.RESET_AFTER])


def first_tries(plan: Plan) -> Plan:
    """The plan for what posthog-js sends first: it gives up what fails four times."""
    return lambda exchange: Fault.NONE if "retry_count=" in exchange.target else plan(exchange)


def all_seen(proxy: FaultyProxy) -> bool:
    """Whether every fault has happened."""
    return {exchange.fault for exchange in list(proxy.exchanges)} >= DECK.keys()


def answered_but_unheard(proxy: FaultyProxy) -> int:
    """Requests that the server acknowledged and whose client never heard of it."""
    return sum(
        exchange.fault is Fault.RESET_AFTER and exchange.answered == 200
        for exchange in list(proxy.exchanges)
    )


def restart_broker(way: Way, until: Callable[..., None]) -> None:
    """Once a few requests are through, kill Kafka as a power cut does, and start it again."""
    until(lambda: accepted(way.proxy) >= 3, "the first batches are through")
    way.broker.kill()
    way.broker.start()


def accepted(proxy: FaultyProxy) -> int:
    """Requests of events that the client knows to be accepted."""
    return sum(
        exchange.status == 200 and exchange.path.rstrip("/") in EVENT_PATHS
        for exchange in list(proxy.exchanges)
    )
