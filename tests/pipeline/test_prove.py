"""Proving: what ClickHouse holds of a batch is told from its rows, cheaply and in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from assets.pipeline import prove
from assets.pipeline.batch import Fingerprint
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.fingerprint import FingerprintSum
from assets.pipeline.prove import Proof, compare, describe_difference, read_fingerprints
from tests.stack import Stack

NewStack = Callable[..., Stack]

places = st.lists(st.tuples(st.integers(0, 3), st.integers(0, (1 << 63) - 1)), max_size=30)


def summed(found: list[tuple[int, int]], size: int) -> tuple[Fingerprint, ...]:
    """The fingerprints of these places, added up so many at a time."""
    sums = FingerprintSum()
    for at in range(0, len(found), size):
        some = found[at : at + size]
        sums.add(
            np.array([partition for partition, _ in some], np.int32),
            np.array([offset for _, offset in some], np.int64),
        )
    return sums.result()


@given(places, st.integers(1, 7))
def test_fingerprints_do_not_hang_on_chunks_or_order(
    found: list[tuple[int, int]], size: int
) -> None:
    """However rows come, their sums are those of the whole, modulo 2**64."""
    whole = summed(found, 1_000)
    assert summed(found, size) == whole
    assert summed(found[::-1], size) == whole
    for print_ in whole:
        offsets = [offset for partition, offset in found if partition == print_.partition]
        assert print_ == Fingerprint(
            print_.partition,
            len(offsets),
            min(offsets),
            max(offsets),
            sum(offsets) % (1 << 64),
            sum(offset * offset for offset in offsets) % (1 << 64),
        )


def test_clickhouse_sums_as_staging_does(new_stack: NewStack) -> None:
    """Large offsets wrap in the same way on both sides; other batches do not count."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    make_tables(stack.client, stack.database)
    found = [(0, 5), (0, (1 << 62) + 12_345), (0, (1 << 63) - 1), (2, (1 << 33) + 1), (2, 7)]
    rows = [[partition, offset, "one", 1] for partition, offset in found]
    stack.client.insert(
        "events",
        [*rows, [0, 9, "other", 1]],
        column_names=["_partition", "_offset", "_batch_id", "project_id"],
        database=stack.database,
    )
    staged = summed(found, 1)
    held = read_fingerprints(stack.client, stack.database, "events", "one")
    assert held == staged
    assert compare(staged, held) is Proof.ALL
    nothing = read_fingerprints(stack.client, stack.database, "events", "none")
    assert compare(staged, nothing) is Proof.NOTHING
    other = read_fingerprints(stack.client, stack.database, "events", "other")
    assert compare(staged, other) is Proof.OTHER


def test_the_proof_reads_the_projection(new_stack: NewStack) -> None:
    """The question is answered by `by_batch`, for events and for dead letters."""
    stack = new_stack(kafka_bootstrap_servers="127.0.0.1:1")
    make_tables(stack.client, stack.database)
    for table in ("events", "dead_letters"):
        stack.client.command(
            f"INSERT INTO {stack.database}.{table} (_partition, _offset, _batch_id) "
            "SELECT 0, number, toString(number % 100) FROM numbers(100000)"
        )
        plan = stack.client.query(
            f"EXPLAIN projections = 1 {prove._FINGERPRINTS}",
            parameters={"database": stack.database, "table": table, "batch_ids": ["7"]},
        ).result_rows
        told = "\n".join(line for (line,) in plan)
        assert "by_batch" in told, told


def test_differences_are_told_in_words() -> None:
    """Rows that lack, are too many, or stand elsewhere are told by partition."""
    staged = [Fingerprint(0, 10, 0, 9, 45, 285), Fingerprint(1, 2, 0, 1, 1, 1)]
    found = [Fingerprint(0, 5, 0, 4, 10, 30), Fingerprint(2, 1, 7, 7, 7, 49)]
    assert describe_difference(staged, found) == (
        "partition 0: staged 10 rows, ClickHouse has 5; "
        "partition 1: staged 2 rows, ClickHouse has 0; "
        "partition 2: staged 0 rows, ClickHouse has 1"
    )
    moved = [Fingerprint(1, 2, 0, 2, 2, 4)]
    assert describe_difference(staged[1:], moved) == (
        "partition 1: staged 2 rows, ClickHouse has 2, with other offsets"
    )
