"""`tidemark status`: what runs, how far loading has come, and what needs a person."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import click
from sqlalchemy import Engine

from assets.pipeline.batch import State
from assets.pipeline.errors import KafkaAway, LaneTrouble, TopicMissing
from assets.pipeline.topic import Topic, topics_of
from local_stack.processes import died, running
from orchestration.backlog import look_at_topic
from orchestration.ledger.batches import states, waiting_for_a_person
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings


@dataclass(frozen=True)
class TopicStatus:
    """One topic. `note` says what is wrong with it, if anything."""

    topic: str
    lanes: int
    lag: int | None
    note: str


@dataclass(frozen=True)
class Status:
    """The state of one Tidemark. `lag` counts records in Kafka that no batch has planned.

    It is None where Kafka does not say.
    """

    services: dict[str, int]
    died: list[dict[str, str]]
    kafka: str
    lag: int | None
    topics: list[TopicStatus]
    batches: dict[str, int]
    waiting_for_a_person: list[dict[str, Any]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(as_json: bool) -> None:
    """Print what runs, the lag, batches by state, and what needs a person."""
    settings = Settings()
    seen = look(settings, open_ledger(settings.ledger))
    if as_json:
        print(json.dumps(asdict(seen)))
        return
    if not seen.services and not seen.died:
        print("services  none of the local stack runs: `make up` starts it")
    for name, pid in seen.services.items():
        print(f"service   {name} (pid {pid})")
    for dead in seen.died:
        print(f"service   {dead['service']} died (log: {dead['log']})")
    print(f"kafka     {seen.kafka}")
    for topic in seen.topics:
        if topic.note:
            print(f"topic     {topic.topic}: {topic.note}")
        else:
            print(
                f"topic     {topic.topic}: {topic.lanes} lanes, {topic.lag:,} records not planned"
            )
    if seen.lag is not None:
        print(f"lag       {seen.lag:,} records not planned yet")
    for state, count in seen.batches.items():
        print(f"batches   {count:,} {state}")
    for batch in seen.waiting_for_a_person:
        print(f"ATTENTION batch {batch['batch_id']} is {batch['state']}: {batch['note']}")


def look(settings: Settings, ledger: Engine) -> Status:
    """Ask every part; a part that is away is told as such."""
    topics: list[TopicStatus] = []
    kafka = settings.bootstrap_servers
    try:
        for topic in topics_of(settings.kafka_client, settings.topics_by_urgency).values():
            topics.append(_look_at_topic(topic, ledger))
    except KafkaAway as error:
        kafka = str(error)
    lags = [topic.lag for topic in topics if topic.lag is not None]
    return Status(
        services={record.name: record.pid for record in running(settings.home)},
        died=[{"service": record.name, "log": record.log} for record in died(settings.home)],
        kafka=kafka,
        lag=sum(lags) if lags else None,
        topics=topics,
        batches={state.value: count for state, count in states(ledger, *settings.topics).items()},
        waiting_for_a_person=[
            {
                "batch_id": batch.batch_id,
                "topic": batch.topic,
                "state": State(batch.state).value,
                "note": batch.note,
                "rejected": dict(batch.staged.reasons) if batch.staged else {},
            }
            for batch in waiting_for_a_person(ledger, *settings.topics)
        ],
    )


def _look_at_topic(topic: Topic, ledger: Engine) -> TopicStatus:
    try:
        backlog = look_at_topic(topic, ledger)
    except TopicMissing:
        return TopicStatus(topic.name, 0, None, "not in Kafka, there is nothing of it to read")
    except LaneTrouble as error:
        return TopicStatus(topic.name, 0, None, str(error))
    return TopicStatus(topic.name, len(backlog.lanes), backlog.unread, "")
