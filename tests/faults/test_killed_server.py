"""Kafka or ClickHouse dies while a worker needs it; once it is back, nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from assets.pipeline import commit, topic
from assets.pipeline.batch import State
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.errors import BatchError, KafkaAway, KafkaRefusesUs, LaneTrouble
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.worker import Worker
from orchestration.settings import Settings
from tests.conftest import Broker
from tests.faults.conftest import WORKER_SECONDS, Scene
from tests.faults.run_worker import AGAIN
from tests.faults.test_insert_in_doubt import is_insert
from tests.faulty_proxy import FaultyProxy
from tests.stack import ClickHouseServer

NewScene = Callable[..., Scene]


@pytest.fixture(scope="module")
def server(new_clickhouse: Callable[[], ClickHouseServer]) -> ClickHouseServer:
    """A ClickHouse that the tests of this module may kill."""
    return new_clickhouse().start()


@pytest.fixture
def proxy(server: ClickHouseServer) -> Iterator[FaultyProxy]:
    """A way to that ClickHouse on which a test sees what is sent."""
    with FaultyProxy(server.port) as between:
        yield between


@pytest.mark.matrix("server killed in mid-insert")
@pytest.mark.parametrize("reached", [State.LOADING, State.LOADED])
def test_clickhouse_is_killed_while_loading(
    new_scene: NewScene, server: ClickHouseServer, reached: State
) -> None:
    """The worker ends with a TransientError; after the restart the next one carries on."""
    scene = new_scene(sound=300, batch_max_records=30, clickhouse_url=server.address)
    worker = scene.start_worker()
    scene.await_state(reached, worker)
    server.kill()
    assert worker.wait(WORKER_SECONDS) == AGAIN
    server.start()
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("server killed in mid-insert")
def test_clickhouse_is_killed_in_mid_insert(
    proxy: FaultyProxy, new_scene: NewScene, server: ClickHouseServer
) -> None:
    """An insert of which the server has the bytes and that takes seconds: all of it comes again."""
    scene = new_scene(sound=60, partitions=1, clickhouse_url=proxy.url)
    make_tables(scene.stack.client, scene.stack.database)
    scene.stack.client.command(
        f"ALTER TABLE {scene.stack.database}.events "
        "ADD COLUMN slow UInt8 DEFAULT sleepEachRow(0.04)"
    )
    worker = scene.start_worker()
    scene.await_true(lambda: any(map(is_insert, proxy.exchanges)), "the insert was sent", worker)
    server.kill()
    assert worker.wait(WORKER_SECONDS) == AGAIN
    server.start()
    assert scene.stack.rows("SELECT count() FROM {database}.events") == [(0,)]
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("Kafka away when batches are staged")
def test_what_is_staged_is_loaded_while_kafka_is_away(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run loads and proves what it can, and then says what is away."""
    scene = new_scene(sound=60)
    stack = scene.stack
    scene.kill_at("after-register")
    monkeypatch.setattr(topic, "_METADATA_TIMEOUT_S", 1.0)
    monkeypatch.setattr(commit, "_WAIT_MS", 1_000)
    away = stack.settings.model_dump() | {"kafka_bootstrap_servers": "127.0.0.1:1"}
    worker = Worker(Settings(**away), stack.ledger, "run", lambda _: None)
    held: list[BatchError] = []
    stage_batches(worker, held)
    load_batches(worker, held)
    load_dead_letters(worker, held)
    assert [type(one) for one in held] == [KafkaAway]
    assert [batch.state for batch in stack.batches()] == [State.COMMITTED]
    scene.send_more(20)
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("Kafka refuses us when batches are staged")
def test_what_is_staged_is_loaded_while_kafka_refuses_us(new_scene: NewScene) -> None:
    """A certificate that is gone: the command loads and proves what it can, then fails by it."""
    scene = new_scene(sound=60)
    scene.kill_at("after-register")
    lost = {"security.protocol": "ssl", "ssl.ca.location": "/nowhere/ca.pem"}
    worker = Worker(
        Settings(**scene.stack.settings.model_dump() | {"kafka_options": lost}),
        scene.stack.ledger,
        "run",
        lambda _: None,
    )
    held: list[BatchError] = []
    stage_batches(worker, held)
    load_batches(worker, held)
    load_dead_letters(worker, held)
    assert [type(one) for one in held] == [KafkaRefusesUs, LaneTrouble, LaneTrouble]
    assert "ssl.ca.location failed" in str(held[0])
    assert "Mend TIDEMARK_KAFKA_OPTIONS" in str(held[0])
    assert [batch.state for batch in scene.stack.batches()] == [State.COMMITTED]
    scene.send_more(20)
    assert scene.work() == 0
    scene.prove()


@pytest.mark.matrix("Kafka killed while it is read")
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
    assert worker.wait(WORKER_SECONDS) in (0, AGAIN)
    assert scene.work() == 0
    scene.prove()
