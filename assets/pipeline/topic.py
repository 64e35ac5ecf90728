"""A topic as the planner sees it: its incarnation, its ends, and where an arrival date begins.

Everything here is metadata: no record is read. Offsets are those that a reader of committed
records sees, so an open transaction at the tail is not planned yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import ListOffsetsResultInfo, OffsetSpec

from assets.pipeline.codes import Remedy, kafka_remedy
from assets.pipeline.errors import KafkaAway, KafkaRefusesUs, TopicMissing

_METADATA_TIMEOUT_S = 10.0
LOOK_PATIENCE_S = 2.0
"""How long an answer is waited for by who only looks: most often because something is away."""
_EPOCH = date(1970, 1, 1)
_CLOCKS_DIFFER = timedelta(days=400)

QUIET: dict[str, str] = {
    "log_level": "2",
    "reconnect.backoff.ms": "250",
    "reconnect.backoff.max.ms": "2000",
}
"""For clients whose errors are raised: librdkafka's own lines say them twenty times a second."""


@dataclass(frozen=True)
class TopicIdentity:
    """What makes offsets mean something: the cluster, and the incarnation of the topic in it."""

    cluster_id: str
    topic_id: str
    partitions: int


@dataclass(frozen=True)
class Retention:
    """How long a topic keeps records, per partition; None for what sets no bound."""

    ms: int | None
    bytes: int | None


@dataclass(frozen=True)
class Connection:
    """A connection for metadata, made when it is first used: until then no setting is judged.

    `patience_s` is how long an answer is waited for, None for as long as ever.
    """

    client: Mapping[str, str]
    patience_s: float | None = None

    @property
    def limit_s(self) -> float:
        """How long an answer is waited for."""
        return _METADATA_TIMEOUT_S if self.patience_s is None else self.patience_s

    @cached_property
    def admin(self) -> AdminClient:
        """Librdkafka's client."""
        return AdminClient({**QUIET, **self.client, "socket.timeout.ms": 10_000})


class Topic:
    """Metadata of one topic. Every call asks the brokers.

    Kafka away raises KafkaAway; a topic that is not there TopicMissing; KafkaRefusesUs where a
    person has to mend the access.
    """

    def __init__(
        self, client: Mapping[str, str], name: str, connection: Connection | None = None
    ) -> None:
        self.name = name
        self._servers = client["bootstrap.servers"]
        self._connection = connection or Connection(client)

    @property
    def _admin(self) -> AdminClient:
        return self._connection.admin

    @property
    def _limit_s(self) -> float:
        return self._connection.limit_s

    def identity(self) -> TopicIdentity:
        """The cluster's id, the topic's id, and how many partitions it has now."""
        described = self._answer(
            lambda: self._admin.describe_topics(
                TopicCollection([self.name]), request_timeout=self._limit_s
            )[self.name].result()
        )
        cluster = self._answer(
            lambda: self._admin.describe_cluster(request_timeout=self._limit_s).result()
        )
        return TopicIdentity(
            str(cluster.cluster_id), str(described.topic_id), len(described.partitions)
        )

    def lows(self, partitions: Iterable[int]) -> dict[int, int]:
        """Per partition, the offset of the oldest record that is still there."""
        return self._offsets({partition: OffsetSpec.earliest() for partition in partitions})

    def highs(self, partitions: Iterable[int]) -> dict[int, int]:
        """Per partition, the end of what a reader of committed records can see."""
        return self._offsets({partition: OffsetSpec.latest() for partition in partitions})

    def log_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The same with what stands behind the beginning of a transaction that is open."""
        listed = self._listed(
            {partition: OffsetSpec.latest() for partition in partitions},
            IsolationLevel.READ_UNCOMMITTED,
        )
        return {partition: int(found.offset) for partition, found in listed.items()}

    def oldest_times(self, partitions: Iterable[int]) -> dict[int, int]:
        """Per partition that has a record, when its oldest one was appended, in ms since 1970."""
        listed = self._listed({p: OffsetSpec.for_timestamp(0) for p in partitions})
        return {p: int(found.timestamp) for p, found in listed.items() if found.offset >= 0}

    def retention(self) -> Retention:
        """For how long the topic keeps records."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, self.name)
        values = self._answer(
            lambda: self._admin.describe_configs([resource], request_timeout=self._limit_s)[
                resource
            ].result()
        )
        if "delete" not in values["cleanup.policy"].value:
            return Retention(None, None)
        ms, bytes_ = (int(values[f"retention.{unit}"].value) for unit in ("ms", "bytes"))
        return Retention(ms if ms >= 0 else None, bytes_ if bytes_ >= 0 else None)

    def starts_of(self, days: Mapping[int, date]) -> dict[int, int]:
        """Per partition, the first offset appended on that day or later; -1 when there is none."""
        return self.starts_at({partition: midnight_ms(day) for partition, day in days.items()})

    def starts_at(self, times: Mapping[int, int]) -> dict[int, int]:
        """The same for times, in ms since 1970."""
        return self._offsets(
            {partition: OffsetSpec.for_timestamp(ms) for partition, ms in times.items()}
        )

    def arrival_dates(self, starts: Mapping[int, int], today: date) -> dict[int, date]:
        """Per partition, the arrival date of the record at that offset, below the lane's end.

        The date of an offset is the first day D such that D + 1 begins after it. Because days
        begin at offsets, whatever the order of timestamps, they tile the log without overlap.
        Where retention has taken the record, the oldest one left counts; where it has taken all
        of them, today.
        """
        lows = self.lows(starts)
        gone = [partition for partition, start in starts.items() if start < lows[partition]]
        left = self.starts_of(dict.fromkeys(gone, _EPOCH))
        empty = {partition for partition in gone if left[partition] == -1}
        starts = {
            partition: max(start, lows[partition])
            for partition, start in starts.items()
            if partition not in empty
        }
        low = dict.fromkeys(starts, _EPOCH)  # the date is above low and at most high
        high = dict(self._dates_not_before(starts, today))
        # Most often the answer is today, so try the day before first and be done.
        probe = {partition: high[partition] - timedelta(days=1) for partition in starts}
        while probe:
            begun = self.starts_of(
                {partition: day + timedelta(days=1) for partition, day in probe.items()}
            )
            for partition, day in probe.items():
                if begun[partition] == -1 or begun[partition] > starts[partition]:
                    high[partition] = day
                else:
                    low[partition] = day
            probe = {
                partition: low[partition] + (high[partition] - low[partition]) // 2
                for partition in starts
                if high[partition] - low[partition] > timedelta(days=1)
            }
        return {**high, **dict.fromkeys(empty, today)}

    def _dates_not_before(self, starts: Mapping[int, int], today: date) -> dict[int, date]:
        """Per partition, a day by which the record had been appended, even if clocks differ."""
        found: dict[int, date] = {}
        ahead = timedelta(days=1)
        day = today
        while len(found) < len(starts) and day - today < _CLOCKS_DIFFER:
            left = [partition for partition in starts if partition not in found]
            begun = self.starts_of(dict.fromkeys(left, day + timedelta(days=1)))
            for partition in left:
                if begun[partition] == -1 or begun[partition] > starts[partition]:
                    found[partition] = day
            day, ahead = day + ahead, ahead * 2
        # What lies further ahead is no broker's clock but the time of a record's maker.
        return dict.fromkeys(starts, today + timedelta(days=1)) | found

    def _offsets(self, specs: Mapping[int, OffsetSpec]) -> dict[int, int]:
        return {partition: int(found.offset) for partition, found in self._listed(specs).items()}

    def _listed(
        self,
        specs: Mapping[int, OffsetSpec],
        isolation_level: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[int, ListOffsetsResultInfo]:
        if not specs:
            return {}
        futures = self._answer(
            lambda: self._admin.list_offsets(
                {TopicPartition(self.name, partition): spec for partition, spec in specs.items()},
                isolation_level=isolation_level,
                request_timeout=self._limit_s,
            )
        )
        return {at.partition: self._answer(future.result) for at, future in futures.items()}

    def _answer(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicMissing(f"Kafka at {self._servers} has no topic {self.name}") from error
            told = f"Kafka did not answer at {self._servers}: {error.args[0].str()}"
            raise kafka_away(told, code) from error


def kafka_away(told: str, code: int) -> KafkaAway:
    """The error for a code that passes by itself, or when a person has mended the access."""
    if kafka_remedy(code) is Remedy.REPAIR:
        return KafkaRefusesUs(
            f"{told}. Mend TIDEMARK_KAFKA_OPTIONS, or what Kafka allows this user: it does not "
            "pass by itself",
            code,
        )
    return KafkaAway(told, code)


def topics_of(
    client: Mapping[str, str], names: Iterable[str], patience_s: float | None = None
) -> dict[str, Topic]:
    """Topics by name, in the order given, over one connection; `patience_s` as it has it."""
    connection = Connection(client, patience_s)
    return {name: Topic(client, name, connection) for name in names}


def midnight_ms(day: date) -> int:
    """When a day begins, in ms since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
