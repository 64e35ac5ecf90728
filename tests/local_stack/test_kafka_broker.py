"""The real broker: started, crashed, restarted, refused. Each start takes a few seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from local_stack.kafka.broker import require_free_disk
from local_stack.kafka.errors import HomeError
from local_stack.kafka.jars import default_cache
from local_stack.kafka.storage import read_cluster_id, reason_of
from local_stack.kafka.topics import (
    KafkaNotReady,
    TopicMismatch,
    ensure_topic,
    unready_reason,
    wait_until_ready,
)
from tests.conftest import unused_port

READY_LIMIT_S = 120.0
END_LIMIT_S = 60.0
QUIET = {"log_level": "0", "reconnect.backoff.max.ms": "200"}


class Broker:
    """One `python -m local_stack.kafka` and what a test needs to know of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = unused_port()
        self.servers = f"127.0.0.1:{self.port}"
        self.process = self.launch()

    def launch(self, *extra: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "local_stack.kafka", "--home", str(self.home)]
        self.process = subprocess.Popen(
            [*argv, "--port", str(self.port), *extra],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def wait_until_ready(self) -> None:
        wait_until_ready(self.servers, READY_LIMIT_S)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=END_LIMIT_S)
        return self.process.returncode

    @property
    def data(self) -> Path:
        return self.home / "kafka" / "data"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, not ready yet."""
    broker = Broker(tmp_path / "home")
    yield broker
    broker.process.kill()
    broker.process.communicate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One ready broker for the tests that do not harm it."""
    broker = Broker(tmp_path_factory.mktemp("shared"))
    broker.wait_until_ready()
    yield broker
    broker.end(signal.SIGTERM)


def run_refused(home: Path, *extra: str) -> str:
    """Start a broker that must not start; its one line on stderr."""
    argv = [sys.executable, "-m", "local_stack.kafka", "--home", str(home), *extra]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=END_LIMIT_S, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("kafka: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def produce(
    servers: str, topic: str, values: list[bytes], until: Callable[[int], bool]
) -> set[bytes]:
    """Produce with acks=all until told to stop; the values that were acknowledged."""
    acknowledged: set[bytes] = set()

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        value = message.value()
        if error is None and value is not None:
            acknowledged.add(value)

    producer = Producer(
        {
            **QUIET,
            "bootstrap.servers": servers,
            "acks": "all",
            "message.timeout.ms": "2000",
            "queue.buffering.max.messages": "1000000",
        }
    )
    for value in values:
        producer.produce(topic, value, on_delivery=on_delivery)
        producer.poll(0)
        if until(len(acknowledged)):
            break
    producer.flush(30)
    return acknowledged


def read_all(servers: str, topic: str, partitions: int) -> list[bytes]:
    """Every value of the topic, up to its end at the time of asking."""
    consumer = Consumer({**QUIET, "bootstrap.servers": servers, "group.id": "test"})
    lanes = [TopicPartition(topic, number, 0) for number in range(partitions)]
    left = sum(consumer.get_watermark_offsets(lane, timeout=30)[1] for lane in lanes)
    consumer.assign(lanes)
    values: list[bytes] = []
    while len(values) < left:
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        values.append(message.value() or b"")
    consumer.close()
    return values


def test_what_is_acknowledged_survives_kill_9(broker: Broker) -> None:
    """SIGKILL amid a stream of records: all that were acknowledged are there after a restart."""
    broker.wait_until_ready()
    topic = ensure_topic(broker.servers, "events", partitions=4)
    cluster_id = read_cluster_id(broker.data)
    killed = False

    def kill_amid(acknowledged: int) -> bool:
        nonlocal killed
        if acknowledged >= 3_000 and not killed:
            broker.process.kill()
            killed = True
        return killed

    values = [b"%d:" % number + b"x" * 200 for number in range(500_000)]
    acknowledged = produce(broker.servers, "events", values, kill_amid)
    assert killed
    assert broker.process.wait(END_LIMIT_S) == -signal.SIGKILL
    assert not (broker.data / ".kafka_cleanshutdown").exists()

    broker.launch()
    broker.wait_until_ready()
    again = ensure_topic(broker.servers, "events", partitions=4)
    assert (again.topic_id, again.partitions, again.created) == (topic.topic_id, 4, False)
    assert read_cluster_id(broker.data) == cluster_id
    admin = AdminClient({**QUIET, "bootstrap.servers": broker.servers})
    assert admin.list_topics(timeout=30).cluster_id == cluster_id
    missing = acknowledged - set(read_all(broker.servers, "events", 4))
    assert len(acknowledged) >= 3_000
    assert missing == set()


def test_sigterm_stops_the_broker_cleanly_and_other_ports_may_follow(broker: Broker) -> None:
    """The pid that was started is the broker; a clean stop leaves no recovery; ports may change."""
    broker.wait_until_ready()
    ensure_topic(broker.servers, "events", partitions=2)
    assert produce(broker.servers, "events", [b"a", b"b"], lambda _: False) == {b"a", b"b"}
    assert psutil.Process(broker.process.pid).name() == "java"
    assert broker.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert (broker.data / ".kafka_cleanshutdown").exists()
    log = (broker.home / "kafka" / "log" / "server.log").read_text()
    assert "Kafka Server started" in log
    assert "ERROR" not in log

    broker.port = unused_port()
    broker.servers = f"127.0.0.1:{broker.port}"
    broker.launch("--controller-port", str(unused_port()))
    broker.wait_until_ready()
    assert sorted(read_all(broker.servers, "events", 2)) == [b"a", b"b"]


def test_a_format_that_was_killed_is_done_again(broker: Broker) -> None:
    """kill -9 while the storage is formatted: the next start has a whole data folder."""
    kafka = broker.home / "kafka"
    end = time.monotonic() + READY_LIMIT_S
    while not list(kafka.glob("formatting-*/format.properties")):
        assert time.monotonic() < end
        assert broker.process.poll() is None
    broker.process.kill()
    broker.process.communicate()
    assert not broker.data.exists()

    broker.launch()
    broker.wait_until_ready()
    assert read_cluster_id(broker.data)
    assert list(kafka.glob("formatting-*")) == []


def test_the_broker_listens_on_the_loopback_address_only(shared: Broker) -> None:
    """Neither the clients' port nor the controller's can be reached from elsewhere."""
    sockets = psutil.Process(shared.process.pid).net_connections("inet")
    listening = {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}
    assert len([s for s in sockets if s.status == psutil.CONN_LISTEN]) == 2
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_a_topic_is_never_made_by_a_mistake_in_a_name(shared: Broker) -> None:
    """Producing to a topic that nobody made fails and makes none."""
    assert produce(shared.servers, "evnets", [b"lost"], lambda _: False) == set()
    admin = AdminClient({**QUIET, "bootstrap.servers": shared.servers})
    assert "evnets" not in admin.list_topics(timeout=30).topics


def test_a_topic_made_by_anybody_has_the_append_time(shared: Broker) -> None:
    """The broker's own default is LogAppendTime, with seven days of retention."""
    admin = AdminClient({**QUIET, "bootstrap.servers": shared.servers})
    admin.create_topics([NewTopic("plain", num_partitions=1)])["plain"].result()
    resource = ConfigResource(ConfigResource.Type.TOPIC, "plain")
    config = admin.describe_configs([resource])[resource].result()
    assert config["message.timestamp.type"].value == "LogAppendTime"
    assert int(config["retention.ms"].value) == 7 * 24 * 3600 * 1000


def test_ensure_topic_makes_a_topic_once_and_leaves_it_alone(shared: Broker) -> None:
    """A second call with other wishes returns the topic as it was made."""
    made = ensure_topic(shared.servers, "once", partitions=3, config={"retention.ms": "3600000"})
    again = ensure_topic(shared.servers, "once", partitions=5)
    assert (made.created, again.created) == (True, False)
    assert (again.topic_id, again.partitions) == (made.topic_id, 3)


def test_a_topic_without_append_time_is_refused(shared: Broker) -> None:
    """Tidemark says what to alter instead of altering somebody's topic."""
    config = {"message.timestamp.type": "CreateTime"}
    admin = AdminClient({**QUIET, "bootstrap.servers": shared.servers})
    admin.create_topics([NewTopic("theirs", num_partitions=1, config=config)])["theirs"].result()
    with pytest.raises(TopicMismatch, match=r"message\.timestamp\.type=CreateTime.*alter it"):
        ensure_topic(shared.servers, "theirs")


def test_a_topic_that_the_broker_refuses_is_an_error(shared: Broker) -> None:
    """A name that Kafka does not take is told by Kafka's own error."""
    with pytest.raises(KafkaException):
        ensure_topic(shared.servers, "no spaces, please")


def test_a_home_has_one_broker(shared: Broker) -> None:
    """A second start on the same home is refused with the pid of the first."""
    line = run_refused(shared.home, "--port", str(unused_port()))
    assert f"already runs on {shared.home / 'kafka'} (pid {shared.process.pid})" in line


def test_a_taken_port_is_one_clear_line(shared: Broker, tmp_path: Path) -> None:
    """The line names the port, who has it, and the setting to change."""
    line = run_refused(tmp_path, "--port", str(shared.port))
    assert f"port {shared.port} is taken (by pid {shared.process.pid} java)" in line
    assert "set TIDEMARK_KAFKA_PORT to a free one" in line


def test_a_taken_controller_port_is_one_clear_line(tmp_path: Path) -> None:
    """The controller's port is checked like the clients' one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        line = run_refused(tmp_path, "--port", str(unused_port()), "--controller-port", str(number))
    assert f"port {number} is taken" in line
    assert "--controller-port" in line


def test_a_first_start_without_network_is_one_clear_line(tmp_path: Path) -> None:
    """An empty cache and no repository: the process says so and ends."""
    cache = ["--cache", str(tmp_path / "cache"), "--repository", "http://127.0.0.1:1"]
    line = run_refused(tmp_path / "home", "--port", str(unused_port()), *cache)
    assert "the first start needs the network" in line


def test_a_data_folder_that_is_not_kafkas_is_refused(tmp_path: Path) -> None:
    """A data folder without Kafka's own mark is neither used nor thrown away."""
    keep = tmp_path / "kafka" / "data" / "keep"
    keep.parent.mkdir(parents=True)
    keep.touch()
    line = run_refused(tmp_path, "--port", str(unused_port()))
    assert "is not a Kafka data folder" in line
    assert keep.exists()


def test_too_little_disk_is_one_clear_line(tmp_path: Path) -> None:
    """The line says how much is free and how much is needed."""
    with pytest.raises(HomeError, match=r"only \d+ MiB free .* needs \d+ MiB"):
        require_free_disk(tmp_path, needed_bytes=2**60)


def test_readiness_names_the_reason(tmp_path: Path) -> None:
    """Nobody at the port: the reason names the address, and waiting has an end."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else takes it
        servers = f"127.0.0.1:{unused.getsockname()[1]}"
        assert servers in (unready_reason(servers) or "")
        with pytest.raises(KafkaNotReady, match=servers):
            wait_until_ready(servers, 0.2)


def test_folders_of_any_alphabet_in_any_locale(tmp_path: Path) -> None:
    """Under LC_ALL=C too, a home and a jar cache with other than ASCII letters work."""
    cache = tmp_path / "Gläser"
    cache.symlink_to(default_cache(), target_is_directory=True)
    port = unused_port()
    argv = [sys.executable, "-m", "local_stack.kafka", "--home", str(tmp_path / "Höhe")]
    argv += ["--port", str(port), "--cache", str(cache)]
    with (tmp_path / "log").open("wb") as log:
        broker = subprocess.Popen(
            argv, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "LC_ALL": "C"}
        )
    try:
        while unready_reason(f"127.0.0.1:{port}") is not None:
            assert broker.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
    finally:
        broker.kill()
        broker.wait()


def test_a_failed_format_is_told_by_its_exception() -> None:
    """The reason is the exception's line, not the end of the stack below it."""
    output = "a warning\njava.io.IOException: disk gone\n\tat a.B\n\tat c.D\n\tat e.F\n"
    assert reason_of(output) == "java.io.IOException: disk gone"
    assert reason_of("one\ntwo\nthree\nfour\n") == "two / three / four"
