"""Comparing rows: the lake's Parquet and ClickHouse's rows give the same hashes, or offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from assets.pipeline.audit import Trouble, compare, reprove
from assets.pipeline.batch import Batch, Kind
from assets.pipeline.compare_rows import Offsets, differences_between
from assets.pipeline.row_hashes import HashedRows
from tests.records import Sent, value_of, value_with
from tests.stack import Stack

NewStack = Callable[..., Stack]

KINDS = (Kind.EVENTS, Kind.DEAD_LETTERS)


def rows_of(*rows: tuple[int, int, int]) -> HashedRows:
    """Rows as (partition, offset, hash)."""
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return HashedRows(columns[0].astype(np.int32), columns[1], columns[2].astype(np.uint64))


STAGED = rows_of((0, 1, 10), (0, 2, 20), (1, 1, 30))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        pytest.param(STAGED, [], id="the same"),
        pytest.param(rows_of((1, 1, 30), (0, 2, 20), (0, 1, 10)), [], id="in another order"),
        pytest.param(
            rows_of((0, 2, 20)), ["partition 0: missing 1 (1)", "partition 1: missing 1 (1)"]
        ),
        pytest.param(
            rows_of(*[(0, 1, 10), (0, 2, 20), (1, 1, 30), (0, 9, 90), (2, 1, 1)]),
            ["partition 0: extra 1 (9)", "partition 2: extra 1 (1)"],
        ),
        pytest.param(
            rows_of((0, 1, 10), (0, 1, 10), (0, 2, 20), (1, 1, 30)),
            ["partition 0: doubled 1 (1)"],
        ),
        pytest.param(rows_of((0, 1, 10), (0, 2, 21), (1, 1, 30)), ["partition 0: altered 1 (2)"]),
        pytest.param(
            rows_of((0, 1, 10), (0, 1, 11), (0, 2, 20), (1, 1, 30)),
            ["partition 0: doubled 1 (1), altered 1 (1)"],
            id="a double that is altered",
        ),
        pytest.param(rows_of(), ["partition 0: missing 2 (1, 2)", "partition 1: missing 1 (1)"]),
    ],
)
def test_differences_are_named_by_offset(found: HashedRows, told: list[str]) -> None:
    """Per partition: missing, extra, doubled, altered; nothing for what is the same."""
    assert [str(difference) for difference in differences_between(STAGED, found)] == told


def test_many_offsets_are_counted_and_some_named() -> None:
    """However many differ, a finding stays short."""
    staged = rows_of(*((0, number, 1) for number in range(25)))
    [difference] = differences_between(staged, rows_of())
    assert difference.missing == Offsets(25, tuple(range(10)))
    assert str(difference) == "partition 0: missing 25 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9 …)"


def loaded(stack: Stack, *records: Sent | bytes | None) -> Batch:
    """One batch of these records, loaded with its dead letters."""
    stack.send(*records)
    [batch] = stack.run()
    return batch


def compared(stack: Stack) -> list[tuple[Trouble, Kind | None, str]]:
    """What comparing all batches finds."""
    worker = stack.worker()
    return [
        (finding.trouble, finding.kind, "; ".join(map(str, finding.partitions)))
        for finding in compare(
            worker.clickhouse, stack.database, worker.lake, stack.batches(), KINDS
        )
    ]


STRANGE: list[dict[str, Any]] = [
    {"uuid": "00000000-0000-8000-8000-000000000000"},  # ends in zeros
    {"event": "tab\tquote'\"\\ zero\0 end", "distinct_id": "ἀρετή 🦉"},
    {"offset_ms": -1, "sent_at": 0, "client_timestamp": "yesterday"},
    {"timestamp": -1, "received_at": 1},
    {"timestamp": 4_102_444_800_000_001, "flags": (1 << 32) - 1},
]


def test_both_sides_spell_every_column_alike(new_stack: NewStack) -> None:
    """Values at the edges of their types, nulls, and dead letters of any bytes hold."""
    stack = new_stack().make_topic(2)
    for number, fields in enumerate(STRANGE):
        stack.send(Sent(value_with(number, **fields), number % 2))
    batch = loaded(
        stack,
        value_of(100, b'{"$lib":"web","deep":{"a":[1,2,"\\u0000"]}}'),
        b"\xff\xfe no text",
        b"",
        Sent(b"no key", key=None),
        Sent(b"binary key", key=b"\x00\xff", headers=[("name", None)]),
    )
    assert batch.staged is not None
    assert batch.staged.balance.ok == len(STRANGE) + 1
    assert batch.staged.balance.rejected == 4
    assert compared(stack) == []


def mutate(stack: Stack, statement: str) -> None:
    """Change rows, and return when they are changed."""
    stack.client.command(f"ALTER TABLE {stack.database}.{statement} SETTINGS mutations_sync = 2")


def test_altered_rows_are_named_with_their_columns(new_stack: NewStack) -> None:
    """Sums hold, because offsets do; rows say which ones were altered, and in what."""
    stack = new_stack().make_topic()
    loaded(stack, *map(value_of, range(20)), b"no event")
    mutate(stack, "events UPDATE properties = '{}', sdk = '' WHERE _offset IN (3, 7)")
    mutate(stack, "dead_letters UPDATE detail = '' WHERE 1")
    worker = stack.worker()
    assert reprove(worker.clickhouse, stack.database, stack.batches(), KINDS) == []
    assert compared(stack) == [
        (Trouble.ALTERED, Kind.EVENTS, "partition 0: altered 2 (3, 7) in properties, sdk"),
        (Trouble.ALTERED, Kind.DEAD_LETTERS, "partition 0: altered 1 (20) in detail"),
    ]


def test_missing_extra_and_doubled_rows_are_named(new_stack: NewStack) -> None:
    """Wherever they stand, also under another arrival date than their batch's."""
    stack = new_stack().make_topic()
    batch = loaded(stack, *map(value_of, range(10)))
    mutate(stack, "events DELETE WHERE _offset = 4")
    columns = "project_id, _partition, _offset, _batch_id, arrival_date"
    stack.client.command(
        f"INSERT INTO {stack.database}.events ({columns}) VALUES "
        f"(1, 0, 77, '{batch.batch_id}', '2020-02-02')"
    )
    stack.client.command(
        f"INSERT INTO {stack.database}.events SELECT * FROM {stack.database}.events "
        "WHERE _offset = 5"
    )
    assert compared(stack) == [
        (
            Trouble.DIFFERENT,
            Kind.EVENTS,
            "partition 0: missing 1 (4), extra 1 (77), doubled 1 (5)",
        )
    ]


def test_rows_of_a_table_that_should_have_none_are_extra(new_stack: NewStack) -> None:
    """A batch without dead letters, of which the table has one all the same."""
    stack = new_stack().make_topic()
    batch = loaded(stack, value_of(1))
    stack.client.command(
        f"INSERT INTO {stack.database}.dead_letters (_batch_id, _offset, arrival_date) "
        f"VALUES ('{batch.batch_id}', 5, '{batch.arrival_date}')"
    )
    assert compared(stack) == [(Trouble.DIFFERENT, Kind.DEAD_LETTERS, "partition 0: extra 1 (5)")]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_staged_file_that_is_not_whole_is_told(new_stack: NewStack, damage: str) -> None:
    """Nothing is compared with a file that is not what was registered; the others are."""
    stack = new_stack(batch_max_records=5).make_topic()
    stack.send_numbers(range(10))
    first, second = stack.run()
    assert first.staged is not None
    path = stack.lake_file(first.staged.files[0].path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    mutate(stack, "events DELETE WHERE _offset = 9")
    worker = stack.worker()
    found = compare(worker.clickhouse, stack.database, worker.lake, stack.batches(), KINDS)
    assert [(finding.batch_id, finding.trouble) for finding in found] == [
        (first.batch_id, Trouble.FILE),
        (second.batch_id, Trouble.DIFFERENT),
    ]


def test_many_batches_are_compared_in_several_queries(
    new_stack: NewStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows a query may have, each batch is compared with its own rows."""
    monkeypatch.setattr("assets.pipeline.compare_rows._ROWS_A_QUERY", 10)
    stack = new_stack(batch_max_records=4).make_topic()
    stack.send_numbers(range(22))
    stack.run()
    assert compared(stack) == []
    mutate(stack, "events DELETE WHERE _offset IN (3, 17)")
    assert [text for _, _, text in compared(stack)] == [
        "partition 0: missing 1 (3)",
        "partition 0: missing 1 (17)",
    ]


def test_a_column_that_the_file_lacks_is_not_compared(new_stack: NewStack) -> None:
    """A column that was added to the table after the batch was staged makes no difference."""
    stack = new_stack().make_topic()
    loaded(stack, *map(value_of, range(5)))
    stack.client.command(
        f"ALTER TABLE {stack.database}.events ADD COLUMN mood String DEFAULT 'calm'"
    )
    assert compared(stack) == []
