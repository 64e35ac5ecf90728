"""The closed table of codes: each has the name that ClickHouse or Kafka itself gives it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError

from assets.pipeline.codes import CLICKHOUSE, KAFKA, Remedy, clickhouse_remedy, kafka_remedy
from tests.stack import Stack


def test_codes_are_what_they_are_called(new_stack: Callable[..., Stack]) -> None:
    """A slip of a digit would make another error one that is tried for ever."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    asked = ", ".join(f"errorCodeToName({code})" for code in CLICKHOUSE)
    (names,) = stack.rows(f"SELECT {asked}")
    assert list(names) == [name for name, _ in CLICKHOUSE.values()]
    assert [KafkaError(code).name() for code in KAFKA] == [name for name, _ in KAFKA.values()]


def test_what_is_not_in_the_table_is_unknown() -> None:
    """Nothing is tried without an end by accident; no code at all is a broken connection."""
    assert (clickhouse_remedy(98_765), kafka_remedy(12_345)) == (Remedy.UNKNOWN, Remedy.UNKNOWN)
    assert clickhouse_remedy(None) is Remedy.WAIT


@pytest.mark.parametrize(
    ("remedy", "codes"),
    [
        (Remedy.WAIT, [202, 210, 242, 243, 252, 999]),
        (Remedy.ALONE, [159, 241]),
        (Remedy.REPAIR, [16, 60, 497, 516]),
        (Remedy.REFUSED, [6, 27, 53, 117]),
    ],
)
def test_what_is_done_about_the_usual_ones(remedy: Remedy, codes: list[int]) -> None:
    """Too many parts, no memory, no column, broken data: each has its own remedy."""
    assert {clickhouse_remedy(code) for code in codes} == {remedy}
