"""Kafka's side changes under a plan: retention, a topic made anew, partitions, transactions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from assets.pipeline.batch import Balance, Batch, Range, State
from orchestration.ledger.gaps import all_gaps
from tests.faults.conftest import BROKEN, WORKER_SECONDS, Scene
from tests.faults.run_worker import WAITS
from tests.forks import Forked
from tests.records import Sent, delete_before, transaction, value_of
from tests.stack import Place, Stack

CLI = "from orchestration.cli import main; main()"


@pytest.fixture
def bare_scene(new_stack: Callable[..., Stack]) -> Callable[..., Scene]:
    """Makes scenes with an empty topic."""

    def make(partitions: int = 1, **values: object) -> Scene:
        return Scene(new_stack(**values).make_topic(partitions))

    return make


def accept_gap(stack: Stack, batch: Batch) -> None:
    """What a person does about a gap."""
    values = stack.settings.model_dump(mode="json", exclude_defaults=True)
    gap = next(gap for gap in all_gaps(stack.ledger, batch.topic) if gap.batch_id == batch.batch_id)
    command = Forked(
        ["-c", CLI, "gaps", "accept", str(gap.gap_id), "--why", "too late"],
        {**os.environ, **{f"TIDEMARK_{name.upper()}": str(v) for name, v in values.items()}},
    )
    assert command.wait(WORKER_SECONDS) == 0


@pytest.mark.matrix("Kafka lost records before they were read")
def test_retention_takes_a_planned_range(bare_scene: Callable[..., Scene]) -> None:
    """The gap has its exact span, holds nothing else up, and ends when a person accepts it."""
    scene = bare_scene(2)
    sent = scene.stack.send_numbers(range(40), 2)
    scene.kill_at("after-plan")
    delete_before(scene.stack.kafka, scene.stack.settings.topic, {0: 7})
    scene.stored = [place for place in sent if place not in {(0, at) for at in range(7)}]
    later = scene.stack.send_numbers(range(100, 110), 2)
    assert scene.work() == WAITS
    gap = scene.stack.batches()[0]
    assert gap.state is State.GAP
    assert "0:[0,7) (7 offsets" in gap.note
    assert scene.stack.account().places == Counter(later)
    accept_gap(scene.stack, gap)
    scene.kill_at("after-send")
    assert scene.work() == 0
    scene.stored += later
    scene.delivered = Balance(ok=43, lost=7)
    scene.prove()


@pytest.mark.matrix("topic deleted and made anew")
def test_a_topic_is_deleted_and_made_anew(bare_scene: Callable[..., Scene]) -> None:
    """Planned offsets of the old one are never read from the new one, which starts at 0."""
    scene = bare_scene()
    stack = scene.stack
    scene.stored = stack.send_numbers(range(20))
    assert scene.work() == 0
    stack.send_numbers(range(20, 30))
    scene.kill_at("after-plan")
    stack.delete_topic()
    stack.make_topic(1)
    scene.stored += stack.send_numbers(range(100, 140))
    assert scene.work() == WAITS
    scene.prove_places()
    gap = stack.batches()[1]
    assert (gap.state, gap.ranges) == (State.GAP, (Range(0, 20, 30),))
    assert "was deleted and made anew since" in gap.note
    accept_gap(stack, gap)
    assert scene.work() == 0
    scene.prove_places()
    batches = stack.batches()
    assert {batch.state for batch in batches} == {State.COMMITTED}
    assert sum((b.staged.balance for b in batches if b.staged), Balance()) == Balance(
        ok=60, lost=10
    )


@pytest.mark.matrix("partitions increased")
def test_partitions_are_added_to_a_topic_at_work(bare_scene: Callable[..., Scene]) -> None:
    """The lanes that are new begin at their first record, the old ones go on."""
    scene = bare_scene()
    scene.send_more(30)
    name = scene.stack.settings.topic
    admin = AdminClient({"bootstrap.servers": scene.stack.kafka})
    for point, partitions in (("after-plan", 3), ("after-send", 5)):
        scene.kill_at(point)
        admin.create_partitions([NewPartitions(name, partitions)])[name].result()
        scene.stack.await_partitions(partitions)
        scene.send_more(60)
    assert scene.work() == 0
    scene.prove()
    assert {partition for partition, _ in scene.stored} == {0, 1, 2, 3, 4}


@pytest.mark.matrix("transactions, aborts and markers")
def test_a_transactional_producer_commits_and_aborts(bare_scene: Callable[..., Scene]) -> None:
    """Markers and aborted records take up offsets; an open transaction waits for its end."""
    scene = bare_scene()
    stack, name = scene.stack, scene.stack.settings.topic

    def batch_of(first: int, count: int = 5) -> list[Sent]:
        return [Sent(value_of(first + n)) for n in range(count)]

    transaction(stack.kafka, name, f"{name}-1", batch_of(0)).commit_transaction()  # 0–4, marker 5
    transaction(stack.kafka, name, f"{name}-2", batch_of(10)).abort_transaction()  # 6–10, marker
    for point in ("after-plan", "after-stage", "after-send"):
        scene.kill_at(point)
    transaction(stack.kafka, name, f"{name}-3", batch_of(20, 3)).commit_transaction()  # 12–14
    open_ = transaction(stack.kafka, name, f"{name}-4", batch_of(30, 4))  # 16–19
    assert scene.work() == 0
    scene.stored = [(0, at) for at in (*range(5), *range(12, 15))]
    scene.prove_places()
    open_.commit_transaction()
    assert scene.work() == 0
    scene.stored += [(0, at) for at in range(16, 20)]
    scene.delivered = Balance(ok=12, absent=9)
    scene.prove()


@pytest.mark.matrix("tombstones, empty and broken values")
def test_values_that_are_no_events(bare_scene: Callable[..., Scene]) -> None:
    """A tombstone is counted; an empty and a broken value become dead letters, once."""
    scene = bare_scene()
    places = scene.stack.send(None, b"", value_of(1), BROKEN, None, value_of(2), b"")
    for point in ("after-stage", "after-send", "after-dead-letters"):
        scene.kill_at(point)
    assert scene.work() == 0
    scene.stored = [places[at] for at in (1, 2, 3, 5, 6)]
    scene.delivered = Balance(ok=2, rejected=3, tombstone=2)
    scene.prove()
    assert len(scene.stack.account().dead_letters) == 3


@pytest.mark.matrix("between the topics of one run")
def test_a_crash_between_the_topics_of_a_run(new_stack: Callable[..., Stack]) -> None:
    """The main topic is staged and the others are not: each topic's records come out once."""
    scene = Scene(new_stack().make_topics(2))
    stack = scene.stack
    sent: dict[str, list[Place]] = {}
    for number, topic in enumerate(stack.settings.topics):
        some = range(number * 100, number * 100 + 20)
        sent[topic] = stack.send(*(Sent(value_of(n), n % 2) for n in some), topic=topic)
    stack.send(value_of(5), topic=stack.settings.overflow_topic)  # again, from the main topic
    for point in ("between-topics", "after-plan", "after-send"):
        scene.kill_at(point)
    assert scene.work() == 0
    sent[stack.settings.overflow_topic] += [(0, 10)]
    for topic, places in sent.items():
        assert stack.account_of(topic).places == Counter(places)
    assert stack.rows("SELECT count(), uniqExact(uuid) FROM {database}.events") == [(60, 60)]
    assert {batch.state for batch in stack.batches()} == {State.COMMITTED}
