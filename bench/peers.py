"""The peers: how the same records usually get from Kafka into ClickHouse without Tidemark.

    loop   consume ─▶ json.loads a message ─▶ a row of Python values ─▶ insert, 10,000 rows a time
    arrow  consume ─▶ msgspec a message ─▶ columns ─▶ Arrow ─▶ insert_arrow, 100,000 rows a time
    jsoneachrow  consume ─▶ the values as they are ─▶ FORMAT JSONEachRow, 500,000 rows a time

All are written as a careful person would: a consumer tuned like Tidemark's own, bad records
skipped, offsets committed after each insert (so a crash doubles rows, but loses none), the same
columns filled with the same values. They stage nothing, prove nothing and look for no duplicates.
The third is what ClickHouse's Kafka engine does, and spared most: its records are none of them
malformed and have every column in them already, so nothing is judged, promoted or taken apart.
Prints a `Carried` as JSON.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import click
import msgspec
import pyarrow as pa
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, KafkaException, Message

from assets.pipeline.clickhouse import connect
from assets.pipeline.columns import DERIVED, EVENTS, HEAD, PROMOTED
from bench.children import Carried
from bench.errors import BenchFailed, run_command
from bench.plain_table import TABLE
from bench.usage import peak_bytes

LOOP_ROWS = 10_000
ARROW_ROWS = 100_000
JSON_ROWS = 500_000

_POLL_MESSAGES = 1_000
_SILENCE_S = 30.0
_HEAD_KEPT = [name for name in HEAD.names if name != "v"]
COLUMNS = [
    *_HEAD_KEPT,
    "properties",
    *PROMOTED,
    *DERIVED,
    *("arrival_date", "_appended_at", "_topic", "_partition", "_offset"),
]
"""The columns a peer fills, in the order in which it makes them."""

_DAY_MS = 86_400_000
_UTM = [name for name in PROMOTED if name.startswith("utm_")]


class LoopRows:
    """Lists of Python values, a list a row."""

    most = LOOP_ROWS

    def __init__(self) -> None:
        self._rows: list[list[Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, message: Message) -> None:
        """One `json.loads`, and a row of what is in it."""
        event = json.loads(message.value() or b"")
        properties = event["properties"]
        head = [event[name] for name in _HEAD_KEPT]
        head[0] = UUID(event["uuid"])
        if event["client_timestamp"] is None:
            head[_HEAD_KEPT.index("client_timestamp")] = ""
        promoted = [properties.get(name) or "" for name in PROMOTED.values()]
        url = urlsplit(properties.get("$current_url") or "")
        if "utm_" in url.query:
            of_query = dict(parse_qsl(url.query))
            for place, name in enumerate(PROMOTED):
                if name in _UTM and not promoted[place]:
                    promoted[place] = of_query.get(name, "")
        self._rows.append(
            [
                *head,
                json.dumps(properties, separators=(",", ":"), ensure_ascii=False),
                *promoted,
                url.hostname or "",
                url.path,
                *_place(message),
            ]
        )

    def insert(self, client: Client) -> None:
        """The way of clickhouse-connect's first page."""
        client.insert(TABLE, self._rows, column_names=COLUMNS)
        self._rows = []


_Properties = msgspec.defstruct(
    "_Properties",
    [(column, str, msgspec.field(name=name, default="")) for column, name in PROMOTED.items()],
    gc=False,
)


class _Event(msgspec.Struct, gc=False):
    uuid: str
    project_id: int
    event: str
    distinct_id: str
    timestamp: int
    client_timestamp: str | None
    offset_ms: int | None
    sent_at: int | None
    received_at: int
    ip: str
    user_agent: str
    sdk: str
    request_id: str
    flags: int
    properties: msgspec.Raw


class ArrowRows:
    """A Python list a column, made into Arrow at the insert."""

    most = ARROW_ROWS

    def __init__(self) -> None:
        self._event = msgspec.json.Decoder(_Event)
        self._properties: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Properties)
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, message: Message) -> None:
        """Two typed decodings, the client's properties left as they are."""
        event = self._event.decode(message.value() or b"")
        promoted = self._properties.decode(event.properties)
        host, path, of_query = _url_parts(promoted.current_url)
        for name, value in of_query:
            if not getattr(promoted, name):
                setattr(promoted, name, value)
        self._rows.append(
            (
                UUID(event.uuid).bytes,
                event.project_id,
                event.event,
                event.distinct_id,
                event.timestamp,
                event.client_timestamp or "",
                event.offset_ms,
                event.sent_at,
                event.received_at,
                event.ip,
                event.user_agent,
                event.sdk,
                event.request_id,
                event.flags,
                bytes(event.properties).decode(),
                *msgspec.structs.astuple(promoted),
                host,
                path,
                *_place(message),
            )
        )

    def insert(self, client: Client) -> None:
        """One Arrow table, one insert."""
        types = [EVENTS.field(name).type for name in COLUMNS]
        types[0] = pa.binary(16)
        columns = [
            pa.array(column, kind)
            for column, kind in zip(zip(*self._rows, strict=True), types, strict=True)
        ]
        client.insert_arrow(TABLE, pa.table(columns, names=COLUMNS))
        self._rows = []


class JsonRows:
    """The messages' bytes, with their places put in front: the engine's virtual columns."""

    most = JSON_ROWS

    def __init__(self) -> None:
        self._rows: list[bytes] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, message: Message) -> None:
        """No look into it."""
        day, appended_at, topic, partition, offset = _place(message)
        places = (
            f'{{"arrival_date":"{day}","_appended_at":{appended_at / 1000:.3f},'
            f'"_topic":"{topic}","_partition":{partition},"_offset":{offset},'
        )
        self._rows.append(places.encode() + (message.value() or b"")[1:])

    def insert(self, client: Client) -> None:
        """One body of many lines."""
        client.raw_insert(
            TABLE,
            column_names=COLUMNS,
            insert_block=self._lines(),
            fmt="JSONEachRow",
            settings={"async_insert": 0},
        )
        self._rows = []

    def _lines(self) -> Generator[bytes, None, None]:
        for first in range(0, len(self._rows), _POLL_MESSAGES):
            yield b"\n".join([*self._rows[first : first + _POLL_MESSAGES], b""])


Rows = LoopRows | ArrowRows | JsonRows
PEERS: dict[str, Callable[[], Rows]] = {
    "loop": LoopRows,
    "arrow": ArrowRows,
    "jsoneachrow": JsonRows,
}


def carry(rows: Rows, client: Client, bootstrap_servers: str, topic: str, records: int) -> Carried:
    """Consume so many records of the topic into TABLE, from its beginning."""
    consumer = _consumer(bootstrap_servers, topic)
    seen = inserted = inserts = 0
    wall = cpu = 0.0
    for messages in _polls(consumer):
        if not seen:  # joining the group is no work a batch has to pay
            wall, cpu = time.perf_counter(), time.process_time()
        for message in messages:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # no event: passed over
                rows.add(message)
        seen += len(messages)
        if len(rows) >= rows.most or seen >= records:
            inserted += len(rows)
            inserts += 1
            rows.insert(client)
            consumer.commit(asynchronous=False)
        if seen >= records:
            break
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    consumer.close()
    return Carried(seen, inserted, wall, cpu, peak_bytes(), inserts)


def _polls(consumer: Consumer) -> Iterator[list[Message]]:
    end = time.monotonic() + _SILENCE_S
    while time.monotonic() < end:
        messages = consumer.consume(_POLL_MESSAGES, timeout=0.5)
        for message in messages:
            error = message.error()
            if error is not None:
                raise KafkaException(error)
        if messages:
            yield messages
            end = time.monotonic() + _SILENCE_S
    raise BenchFailed(f"Kafka delivered nothing for {_SILENCE_S:.0f} s")


def _consumer(bootstrap_servers: str, topic: str) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"peer-{time.time_ns()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "queued.max.messages.kbytes": 16_384,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 50,
        }
    )
    consumer.subscribe([topic])
    return consumer


def _place(message: Message) -> tuple[date, int, str | None, int | None, int | None]:
    """Where the record stands: arrival date, broker's time (ms), topic, partition, offset."""
    appended_at = message.timestamp()[1]
    return (
        _day(appended_at // _DAY_MS),
        appended_at,
        message.topic(),
        message.partition(),
        message.offset(),
    )


@lru_cache(maxsize=16)
def _day(number: int) -> date:
    return datetime.fromtimestamp(number * _DAY_MS / 1000, UTC).date()


@lru_cache(maxsize=65_536)
def _url_parts(url: str) -> tuple[str, str, list[tuple[str, str]]]:
    parts = urlsplit(url)
    of_query = parse_qsl(parts.query) if "utm_" in parts.query else []
    return parts.hostname or "", parts.path, [pair for pair in of_query if pair[0] in _UTM]


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("peer", type=click.Choice(list(PEERS)))
@click.option("--bootstrap-servers", required=True, help="Kafka to read from.")
@click.option("--topic", required=True, help="Topic to read.")
@click.option("--records", required=True, type=int, help="Records to read.")
@click.option("--clickhouse", required=True, help=f"ClickHouse that has the table {TABLE}.")
def main(peer: str, bootstrap_servers: str, topic: str, records: int, clickhouse: str) -> None:
    client = connect(clickhouse, "default", "")
    print(json.dumps(asdict(carry(PEERS[peer](), client, bootstrap_servers, topic, records))))


if __name__ == "__main__":
    run_command(main, "bench.peers")
