"""What an SDK believes delivered, held against what Kafka and ClickHouse really have.

Each event carries its number in the property `n`. Invariant: `hold` compares with the offsets and
rows that are there, never with what the capture API said.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tests.capture_api.conftest import read_topic
from tests.sdks.conftest import Way

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Evidence:
    """What was found: each number's uuids in Kafka, and how many records there were of all."""

    uuids: dict[int, set[str]]
    records: int

    @property
    def duplicates(self) -> int:
        """Records in Kafka that repeat another one's uuid."""
        return self.records - len(set().union(*self.uuids.values()))


def in_kafka(way: Way) -> Evidence:
    """All events with a number that Kafka has now, whichever topic they went to."""
    uuids: dict[int, set[str]] = defaultdict(set)
    records = 0
    for topic in way.stack.settings.topics:
        for record in read_topic(way.broker.bootstrap_servers, topic):
            number = record.value["properties"].get("n")
            if number is not None:
                uuids[number].add(record.value["uuid"])
                records += 1
    return Evidence(dict(uuids), records)


def hold(way: Way, believed: Iterable[int], *, own_uuids: bool = True) -> Evidence:
    """Every event believed delivered is in Kafka, and each uuid of it once in ClickHouse.

    With `own_uuids`, where the SDK gives its events uuids, an event has one and no other.
    """
    wanted = set(believed)
    end = time.monotonic() + PATIENCE_SECONDS
    evidence = in_kafka(way)
    while not wanted <= evidence.uuids.keys() and time.monotonic() < end:
        time.sleep(0.5)  # acknowledged events may yet be on their way from a spool
        evidence = in_kafka(way)
    lost = sorted(wanted - evidence.uuids.keys())
    assert not lost, f"{len(lost)} of {len(wanted)} events are not in Kafka: {lost[:10]}"
    if own_uuids:
        split = {n: ids for n, ids in evidence.uuids.items() if len(ids) > 1}
        assert not split, f"events with several uuids: {split}"
    way.stack.run()
    counts = dict(
        way.stack.rows("SELECT toString(uuid), count() FROM {database}.events GROUP BY 1")
    )
    uuids = set().union(*(evidence.uuids[number] for number in wanted))
    wrong = {uuid: counts.get(uuid, 0) for uuid in uuids if counts.get(uuid, 0) != 1}
    assert not wrong, f"uuids that are not once in ClickHouse: {wrong}"
    return evidence
