"""The faults that the tests of all SDKs send through, and a broker that dies in between."""

from __future__ import annotations

from collections.abc import Callable

from capture_api.ingest import INGEST_PATHS
from tests.faulty_proxy import Fault, FaultyProxy, Plan, seeded
from tests.sdks.conftest import Way

SHARES = {
    Fault.UNAVAILABLE: 0.06,
    Fault.UNAVAILABLE_LATER: 0.06,
    Fault.RESET_BEFORE: 0.06,
    Fault.RESET_AFTER: 0.10,
    Fault.DELAY: 0.05,
}


def faults(seed: int) -> Plan:
    """About every third request of events is spoilt."""
    return seeded(seed, SHARES, INGEST_PATHS)


def seen(proxy: FaultyProxy) -> set[Fault]:
    """The faults that really happened."""
    return {exchange.fault for exchange in list(proxy.exchanges)} - {Fault.NONE}


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
        exchange.status == 200 and exchange.path.rstrip("/") in INGEST_PATHS
        for exchange in list(proxy.exchanges)
    )
