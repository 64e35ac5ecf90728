"""Staging: records become immutable files that balance, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.pipeline import stage as stage_module
from assets.pipeline.batch import Balance, Batch, Kind, Range, Staged
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import DUPLICATES, EVENTS
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.errors import BatchError
from assets.pipeline.lake import Lake
from assets.pipeline.read import Chunk
from assets.pipeline.stage import stage
from tests.records import value_of
from tests.staging import Record, batch_around, batch_of, chunks_of, lane, staged_into

BROKEN = b"{"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A lake in a temporary folder."""
    return Lake(str(tmp_path / "lake"))


def files_in(lake: Lake) -> list[Path]:
    """Every file of a lake in a folder."""
    return sorted(path for path in Path(lake.uri).rglob("*") if path.is_file())


def places(lake: Lake, staged: Staged, kind: Kind) -> list[tuple[int, int]]:
    """Where the records of a staged file stood, in its order."""
    file = staged.file(kind)
    if file is None:
        return []
    table = pq.read_table(lake.full_path(file.path))
    assert len(table) == file.rows
    return list(zip(table["_partition"].to_pylist(), table["_offset"].to_pylist(), strict=True))


def test_the_same_records_give_the_same_bytes(lake: Lake, tmp_path: Path) -> None:
    """Staging again, as after a crash, gives files of the same hash and the same keys."""
    records = [*lane(map(value_of, range(300))), *lane([BROKEN, value_of(5), None], start=300)]
    batch = batch_around(records)
    first, first_keys = staged_into(lake, batch, records)
    before = {path: path.read_bytes() for path in files_in(lake)}
    assert first_keys is not None
    second, second_keys = staged_into(lake, batch, records, [first_keys])
    assert (second, second_keys) == (first, first_keys)
    assert {path: path.read_bytes() for path in files_in(lake)} == before
    elsewhere = Lake(str(tmp_path / "elsewhere"))
    assert staged_into(elsewhere, batch, records, size=7)[0] == first


def test_a_crash_leaves_no_file_of_a_final_name(lake: Lake) -> None:
    """When the chunks break off, the lake has no file at all."""

    def broken_off() -> Iterator[Chunk]:
        yield from chunks_of(lane([*map(value_of, range(50)), BROKEN, value_of(1)]))
        raise ConnectionResetError("the wire is cut")

    batch = batch_of(Range(0, 0, 100))
    seen = SeenKeys(lake.filesystem, [], batch.batch_id)
    with pytest.raises(Exception, match="the wire is cut"):
        stage(batch, broken_off(), lake, seen, StageClock())
    assert files_in(lake) == []


def test_more_records_than_offsets_is_an_error(lake: Lake) -> None:
    """Records that a range cannot hold are refused instead of counted."""
    records = [Record(0, 0, value_of(0)), Record(0, 0, value_of(1))]
    with pytest.raises(BatchError, match=r"0:\[0,1\) gave 2 records"):
        staged_into(lake, batch_of(Range(0, 0, 1)), records)


def test_offsets_without_a_record_are_absent(lake: Lake) -> None:
    """What the range spans and nobody delivered is counted, for each partition."""
    records = [Record(0, 2, value_of(0)), Record(3, 9, None)]
    staged, _ = staged_into(
        lake, batch_of(Range(0, 0, 5), Range(3, 9, 11), Range(4, 0, 2)), records
    )
    assert staged.balances == {
        0: Balance(ok=1, absent=4),
        3: Balance(tombstone=1, absent=1),
        4: Balance(absent=2),
    }


def test_a_batch_without_records_has_no_files(lake: Lake) -> None:
    """A range of transaction markers alone is staged as nothing."""
    staged, key_file = staged_into(lake, batch_of(Range(0, 0, 5)), [])
    assert (staged.files, key_file, files_in(lake)) == ((), None, [])
    assert staged.balance == Balance(absent=5)


@pytest.mark.parametrize("row_group_rows", [1, 3, 65_536])
def test_duplicates_are_found_across_chunks_and_row_groups(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, row_group_rows: int
) -> None:
    """However the rows are grouped, the first record of a uuid is the row."""
    monkeypatch.setattr(stage_module, "ROW_GROUP_ROWS", row_group_rows)
    numbers = [1, 1, 2, 3, 1, 2, 4]
    staged, _ = staged_into(lake, batch_of(Range(0, 0, 7)), lane(map(value_of, numbers)), size=2)
    assert places(lake, staged, Kind.EVENTS) == [(0, 0), (0, 2), (0, 3), (0, 6)]
    assert places(lake, staged, Kind.DUPLICATES) == [(0, 1), (0, 4), (0, 5)]
    file = staged.file(Kind.DUPLICATES)
    assert file is not None
    table = pq.read_table(lake.full_path(file.path))
    assert table["first_offset"].to_pylist() == [0, 0, 2]
    assert table.schema.names == DUPLICATES.names


def test_duplicates_are_found_across_batches(lake: Lake) -> None:
    """A uuid of an earlier batch is a duplicate that names the record it repeats."""
    earlier = batch_of(Range(0, 0, 2))
    _, keys = staged_into(lake, earlier, lane(map(value_of, [1, 2])))
    assert keys is not None
    values = [value_of(2), value_of(3), value_of(1, project_id=9)]
    staged, _ = staged_into(lake, batch_of(Range(0, 2, 5)), lane(values, start=2), [keys])
    assert places(lake, staged, Kind.EVENTS) == [(0, 3), (0, 4)]
    file = staged.file(Kind.DUPLICATES)
    assert file is not None
    (row,) = pq.read_table(lake.full_path(file.path)).to_pylist()
    assert row["first_batch_id"] == earlier.batch_id
    assert (row["_offset"], row["first_partition"], row["first_offset"]) == (2, 0, 1)


def test_a_rejected_record_does_not_take_its_uuid(lake: Lake) -> None:
    """The sound record that follows a rejected one of the same uuid is no duplicate."""
    values = [value_of(1, timestamp=1 << 62), value_of(1)]
    staged, _ = staged_into(lake, batch_of(Range(0, 0, 2)), lane(values))
    assert staged.balance == Balance(ok=1, rejected=1)


def test_row_groups_are_cut_by_rows_and_by_bytes(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds a row group: a file of many rows, or of large ones, has many."""
    monkeypatch.setattr(stage_module, "ROW_GROUP_ROWS", 40)
    small = lane(map(value_of, range(100)))
    staged, _ = staged_into(lake, batch_around(small), small, size=10)
    monkeypatch.setattr(stage_module, "ROW_GROUP_BYTES", 100_000)
    large = lane((value_of(n, b'{"a":"%s"}' % (b"x" * 30_000)) for n in range(30)), start=100)
    staged_large, _ = staged_into(lake, batch_around(large), large, size=2)

    def groups(staged: Staged) -> int:
        file = staged.file(Kind.EVENTS)
        assert file is not None
        return int(pq.ParquetFile(lake.full_path(file.path)).num_row_groups)

    assert groups(staged) == 3
    assert groups(staged_large) >= 5


def test_events_have_their_columns(lake: Lake) -> None:
    """The staged file has the columns of EVENTS, none of them null where it must not be."""
    values = [value_of(1), value_of(2, b"{}", client_timestamp="x", sent_at=3, offset_ms=4)]
    staged, _ = staged_into(lake, batch_of(Range(0, 0, 2)), lane(values))
    file = staged.file(Kind.EVENTS)
    assert file is not None
    table = pq.read_table(lake.full_path(file.path))
    assert table.schema.names == EVENTS.names
    for field in EVENTS:
        assert field.nullable or table[field.name].null_count == 0, field.name
    assert table["client_timestamp"].to_pylist() == ["", "x"]


def test_an_event_stands_at_the_offset_of_its_record(lake: Lake) -> None:
    """Records of an unusual form, sound or not, do not move their neighbours' offsets."""
    values = [b" " + value_of(0), value_of(1), BROKEN, b"\n" + value_of(3), value_of(4)]
    for some in (values, [*values[:2], *values[3:]]):
        staged, _ = staged_into(lake, batch_of(Range(0, 0, len(some))), lane(some))
        file = staged.file(Kind.EVENTS)
        assert file is not None
        table = pq.read_table(lake.full_path(file.path))
        for offset, request in zip(table["_offset"], table["request_id"], strict=True):
            assert b'"%s"' % request.as_py().encode() in some[offset.as_py()]


contents = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([None, b"", BROKEN, b" " + value_of(9)]) | st.integers(0, 8).map(value_of),
        st.booleans(),
    ),
    max_size=25,
)


def expected_of(records: list[Record]) -> dict[str, set[tuple[int, int]]]:
    """What should become of records, told the slow way."""
    found: dict[str, set[tuple[int, int]]] = {"ok": set(), "duplicate": set(), "rejected": set()}
    seen: set[bytes] = set()
    for record in records:
        if record.value is None:
            continue
        if record.value in (b"", BROKEN):
            found["rejected"].add((record.partition, record.offset))
        elif record.value in seen:
            found["duplicate"].add((record.partition, record.offset))
        else:
            seen.add(record.value)
            found["ok"].add((record.partition, record.offset))
    return found


@settings(max_examples=60, deadline=None)
@given(contents, st.integers(1, 9))
def test_every_batch_balances(content: list[tuple[int, bytes | None, bool]], size: int) -> None:
    """Whatever a batch holds, every offset is in one file, a tombstone or absent."""
    ends: Counter[int] = Counter()
    records: list[Record] = []
    for partition, value, hole in content:
        ends[partition] += hole
        records.append(Record(partition, ends[partition], value))
        ends[partition] += 1
    batch: Batch = batch_of(*(Range(partition, 0, end) for partition, end in ends.items()))
    with TemporaryDirectory() as folder:
        lake = Lake(folder)
        staged, _ = staged_into(lake, batch, records, size=size)
        expected = expected_of(records)
        assert set(places(lake, staged, Kind.EVENTS)) == expected["ok"]
        assert set(places(lake, staged, Kind.DUPLICATES)) == expected["duplicate"]
        assert set(places(lake, staged, Kind.DEAD_LETTERS)) == expected["rejected"]
    balance = staged.balance
    assert (balance.ok, balance.duplicate, balance.rejected) == tuple(
        len(expected[verdict]) for verdict in ("ok", "duplicate", "rejected")
    )
    assert balance.tombstone == sum(record.value is None for record in records)
    assert balance.offsets == batch.offsets
    for kind, verdict in ((Kind.EVENTS, "ok"), (Kind.DEAD_LETTERS, "rejected")):
        assert sum(print_.rows for print_ in staged.fingerprints[kind]) == len(expected[verdict])
