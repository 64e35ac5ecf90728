"""Kafka or ClickHouse dies while a worker needs it; once it is back, nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from assets.pipeline.batch import State
from tests.conftest import Broker
from tests.faults.conftest import WORKER_SECONDS, Scene
from tests.stack import ClickHouseServer

NewScene = Callable[..., Scene]


@pytest.fixture(scope="module")
def server(new_clickhouse: Callable[[], ClickHouseServer]) -> ClickHouseServer:
    """A ClickHouse that the tests of this module may kill."""
    return new_clickhouse().start()


@pytest.mark.parametrize("reached", [State.LOADING, State.LOADED])
def test_clickhouse_is_killed_while_loading(
    new_scene: NewScene, server: ClickHouseServer, reached: State
) -> None:
    """The worker ends with a TransientError; after the restart the next one carries on."""
    scene = new_scene(sound=300, batch_max_records=30, clickhouse_url=server.address)
    worker = scene.start_worker()
    scene.await_state(reached, worker)
    server.kill()
    assert worker.wait(WORKER_SECONDS) == 3
    server.start()
    assert scene.work() == 0
    scene.prove()


def test_kafka_is_killed_while_reading(
    new_scene: NewScene, new_broker: Callable[[], Broker]
) -> None:
    """Whether the worker waits for Kafka or gives up, in the end every record came out once."""
    broker = new_broker().start()
    scene = new_scene(
        sound=300, batch_max_records=30, kafka_bootstrap_servers=broker.bootstrap_servers
    )
    worker = scene.start_worker()
    scene.await_state(State.STAGED, worker)
    broker.kill()
    broker.start()
    assert worker.wait(WORKER_SECONDS) in (0, 3)
    assert scene.work() == 0
    scene.prove()
