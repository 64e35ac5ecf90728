"""Making records, and putting them into Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from capture_api.events.record import RECORD_VERSION, VERSION_HEADERS, RecordHead, encode_value
from capture_api.events.refused import evidence_value

RECEIVED_AT = 1_763_800_000_000_000
"""A moment, in µs since 1970, that records are received at unless a test says otherwise."""

Header = tuple[str, str | bytes | None]


def uuid_of(number: int) -> str:
    """A UUID for a number; different numbers give different ones."""
    return str(UUID(int=number << 64 | 0x8000_0000_0000_0000 | number))


def value_of(number: int, properties: bytes | None = None, **head: Any) -> bytes:
    """The value of a sound record as our edge writes it, with the uuid of that number."""
    if properties is None:
        properties = json.dumps(properties_of(number)).encode()
    return encode_value(RecordHead(**{**fields_of(number), **head}), properties)


def properties_of(number: int) -> dict[str, Any]:
    """The properties of a record unless a test says otherwise."""
    return {"$lib": "web", "number": number}


def fields_of(number: int) -> dict[str, Any]:
    """The head of a record unless a test says otherwise."""
    return {
        "v": RECORD_VERSION,
        "uuid": uuid_of(number),
        "project_id": 1,
        "event": "page viewed",
        "distinct_id": f"person-{number % 7}",
        "timestamp": RECEIVED_AT + number,
        "client_timestamp": None,
        "offset_ms": None,
        "sent_at": None,
        "received_at": RECEIVED_AT + number,
        "ip": "203.0.113.9",
        "user_agent": "tests",
        "sdk": "tests/1",
        "request_id": f"request-{number}",
        "flags": 0,
    }


def read_value(value: bytes) -> dict[str, Any]:
    """A record's fields by name, and its `properties`; of an event too large for one, its own."""
    if b"\n" not in value:
        return dict(json.loads(value))
    head, properties = value.split(b"\n")
    fields = zip(RecordHead.__struct_fields__, json.loads(head), strict=True)
    return {**dict(fields), "properties": json.loads(properties)}


def value_without(number: int, field: str) -> bytes:
    """A value of layout 1 that lacks one field of the head."""
    record = json.loads(value_with(number))
    del record[field]
    return spelled(record)


def value_with(number: int, **fields: Any) -> bytes:
    """A value of layout 1 with fields of any type, whatever the layout says."""
    record = {**fields_of(number), "v": 1, "properties": properties_of(number), **fields}
    return spelled(record)


def two_lines_with(number: int, **fields: Any) -> bytes:
    """A value with fields of any type, whatever the layout says."""
    head = {**fields_of(number), **fields}
    return spelled(list(head.values())) + b"\n" + spelled(properties_of(number))


def too_large(number: int, **head: Any) -> bytes:
    """What the edge writes for an event that is too large for a record of its own."""
    fields: dict[str, Any] = {
        "uuid": uuid_of(number),
        "project_id": 1,
        "event": "page viewed",
        "distinct_id": "person",
        "received_at": RECEIVED_AT,
        "request_id": f"request-{number}",
        "sent": b"x" * 1_234_567,
    }
    return evidence_value(**{**fields, **head})


def spelled(record: Any) -> bytes:
    """JSON without blanks, as our edge writes it."""
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Sent:
    """What to put into a partition; `timestamp` in ms, for topics that take the producer's."""

    value: bytes | None
    partition: int = 0
    timestamp: int = 0
    key: bytes | None = b"token:person"
    headers: Sequence[Header] = field(default_factory=lambda: list(VERSION_HEADERS))


def produce(
    bootstrap_servers: str,
    topic: str,
    records: Iterable[Sent],
    **options: str,
) -> list[tuple[int, int]]:
    """Put records into Kafka in order; gives the partition and offset of each."""
    places: dict[int, tuple[int, int]] = {}
    failed: list[str] = []

    def note(number: int) -> Any:
        def delivered(error: Any, message: Message) -> None:
            if error is None:
                places[number] = (message.partition(), message.offset())  # type: ignore[assignment]
            else:
                failed.append(str(error))

        return delivered

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            # In order as well, and without the half second that an idempotent one waits for its id.
            "max.in.flight": "1",
            "linger.ms": "5",
            "log_level": "0",
            "queue.buffering.max.messages": "1000000",
            **options,
        }
    )
    for number, record in enumerate(records):
        producer.produce(
            topic,
            value=record.value,
            key=record.key,
            partition=record.partition,
            timestamp=record.timestamp,
            headers=list(record.headers),
            on_delivery=note(number),
        )
        producer.poll(0)
    assert producer.flush(60) == 0, "Kafka did not take the records"
    assert not failed, failed[0]
    return [places[number] for number in sorted(places)]


def transaction(bootstrap_servers: str, topic: str, name: str, records: Iterable[Sent]) -> Producer:
    """A producer whose open transaction holds these records; they are in the log already."""
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "transactional.id": name, "log_level": "0"}
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for record in records:
        producer.produce(topic, value=record.value, key=record.key, partition=record.partition)
    assert producer.flush(60) == 0, "Kafka did not take the records"
    return producer


def delete_before(bootstrap_servers: str, topic: str, ends: dict[int, int]) -> None:
    """Take away the records before these offsets, as retention does."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.delete_records(
        [TopicPartition(topic, partition, end) for partition, end in ends.items()]
    ).values():
        future.result()
