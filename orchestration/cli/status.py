"""`tidemark status`: what runs, how far loading has come, and what needs a person."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import click
from sqlalchemy import Engine

from assets.pipeline.batch import State
from assets.pipeline.errors import TransientError
from assets.pipeline.topic import Topic
from local_stack.processes import died, running
from orchestration.ledger.batches import planned_ends, states, waiting_for_a_person
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings


@dataclass(frozen=True)
class Status:
    """The state of one Tidemark. `lag` counts records in Kafka that no batch has planned."""

    services: dict[str, int]
    died: list[dict[str, str]]
    kafka: str
    lag: int | None
    batches: dict[str, int]
    waiting_for_a_person: list[dict[str, str]]


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
    if seen.lag is not None:
        print(f"lag       {seen.lag:,} records not planned yet")
    for state, count in seen.batches.items():
        print(f"batches   {count:,} {state}")
    for batch in seen.waiting_for_a_person:
        print(f"ATTENTION batch {batch['batch_id']} is {batch['state']}: {batch['note']}")


def look(settings: Settings, ledger: Engine) -> Status:
    """Ask every part; a part that is away is told as such."""
    lag: int | None = None
    try:
        topic = Topic(settings.kafka_client, settings.topic)
        identity = topic.identity()
        ends = planned_ends(ledger, identity.cluster_id, identity.topic_id)
        partitions = range(identity.partitions)
        lows = topic.lows([partition for partition in partitions if partition not in ends])
        lag = sum(
            high - ends.get(partition, lows.get(partition, 0))
            for partition, high in topic.highs(partitions).items()
        )
        kafka = f"{settings.bootstrap_servers}, topic {settings.topic} ({len(partitions)} lanes)"
    except TransientError as error:
        kafka = str(error)
    return Status(
        services={record.name: record.pid for record in running(settings.home)},
        died=[{"service": record.name, "log": record.log} for record in died(settings.home)],
        kafka=kafka,
        lag=lag,
        batches={state.value: count for state, count in states(ledger, settings.topic).items()},
        waiting_for_a_person=[
            {"batch_id": batch.batch_id, "state": State(batch.state).value, "note": batch.note}
            for batch in waiting_for_a_person(ledger, settings.topic)
        ],
    )
