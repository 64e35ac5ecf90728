"""Re-enriching a staged file: what of its rows is made again, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.pipeline.batch import Kind, StagedFile
from assets.pipeline.columns import EVENTS, MADE
from assets.pipeline.errors import BatchError, StagedFileDamaged
from assets.pipeline.lake import Lake
from assets.pipeline.reenrich import (
    Changes,
    changes_of,
    changes_text,
    comes_out_the_same,
    reenriched,
    row_groups,
)
from assets.pipeline.stage import ROW_GROUP_ROWS
from tests.records import value_of, value_with
from tests.staging import batch_around, lane, staged_into

PROPERTIES: Sequence[bytes] = [
    b'{"$lib":"web","$current_url":"https://User@Shop.Example:8443/a?utm_source=mail&x=1#y"}',
    b'{"$lib":7,"$os":null,"utm_source":"set","$current_url":"https://a.example/?utm_source=q"}',
    b"{}",
    '{"$browser":"Ünïcode \\u00e9","deep":{"$lib":"not this"}}'.encode(),
]


def staged_file(lake: Lake, values: Sequence[bytes]) -> StagedFile:
    """Values as staged by today's code."""
    records = lane(values)
    staged, _ = staged_into(lake, batch_around(records), records)
    file = staged.file(Kind.EVENTS)
    assert file is not None
    return file


def written(
    lake: Lake, file: StagedFile, change: Callable[[pa.Table], pa.Table], groups: int | None = None
) -> StagedFile:
    """The same rows, changed, as a file that the ledger knows."""
    table = change(pq.read_table(lake.full_path(file.path), partitioning=None))
    path = "events/older.parquet"
    with lake.create(path) as sink:
        pq.write_table(table, sink, row_group_size=groups)
    return replace(file, path=path, bytes=sink.bytes, sha256=sink.sha256)


def blank(table: pa.Table, *names: str) -> pa.Table:
    """Rows whose columns of these names are empty."""
    for name in names:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array([""] * len(table)))
    return table


def anew(lake: Lake, file: StagedFile) -> pa.Table:
    """What re-enriching makes of a file."""
    new = reenriched(lake, file, "remade/new.parquet", 3, lambda: None)
    assert new is not None
    assert new.rows == file.rows
    lake.check(new.path, new.bytes, new.sha256)
    return pa.concat_tables(row_groups(lake, new))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(str(tmp_path / "lake"))


def test_what_staging_made_comes_out_the_same(lake: Lake) -> None:
    """Of records of both layouts, whatever their properties: no file is written then."""
    values = [value_of(number, text) for number, text in enumerate(PROPERTIES)]
    over_lines = value_with(11).replace(b'"properties":{', b'"properties": {\n  "os": "x",\n')
    values += [value_with(10), over_lines]
    file = staged_file(lake, values)
    assert file.rows == len(values)
    assert comes_out_the_same(lake, file)
    assert reenriched(lake, file, "remade/new.parquet", 3, lambda: None) is None
    assert not Path(lake.full_path("remade/new.parquet")).exists()
    found = Changes()
    changes_of(lake, file, found)
    assert not found
    assert changes_text(found) == [f"none of {file.rows} rows would change"]


def test_every_made_column_is_made_again_and_no_other_changes(lake: Lake) -> None:
    """In the rows' own order and row groups; the rows name the generation."""
    values = [value_of(n, PROPERTIES[n % len(PROPERTIES)]) for n in range(40)]
    file = staged_file(lake, values)
    whole = pa.concat_tables(row_groups(lake, file))
    older = written(lake, file, lambda table: blank(table, *MADE), groups=7)
    made = anew(lake, older)
    assert made.drop_columns("_generation").equals(whole.drop_columns("_generation"))
    assert set(made["_generation"].to_pylist()) == {3}
    groups = pq.ParquetFile(lake.full_path("remade/new.parquet"))
    assert [groups.metadata.row_group(n).num_rows for n in range(6)] == [7, 7, 7, 7, 7, 5]


def test_a_file_of_older_code_gets_todays_columns(lake: Lake) -> None:
    """Those that it lacks are filled, those that are no more are left out; the preview says so."""
    file = staged_file(lake, [value_of(n, PROPERTIES[0]) for n in range(5)])

    def older(table: pa.Table) -> pa.Table:
        table = table.drop_columns(["url_host", "request_id", "offset_ms"])
        at = table.schema.get_field_index("flags")
        table = table.set_column(at, "flags", table["flags"].cast(pa.int64()))
        return table.append_column("bygone", pa.array(["x"] * len(table)))

    before = written(lake, file, older)
    found = Changes()
    changes_of(lake, before, found)
    assert found.added == {"url_host", "request_id", "offset_ms"}
    assert found.removed == {"bygone"}
    assert {name: column.rows for name, column in found.columns.items()} == {"url_host": 5}
    told = "\n".join(changes_text(found))
    assert "column bygone would be left out" in told
    assert "'' ─▶ 'shop.example'" in told
    made = anew(lake, before)
    assert made.schema.equals(EVENTS)
    assert set(made["url_host"].to_pylist()) == {"shop.example"}
    assert set(made["request_id"].to_pylist()) == {""}
    assert set(made["offset_ms"].to_pylist()) == {None}


def test_properties_that_cannot_be_parsed_today_keep_what_they_had(lake: Lake) -> None:
    """Their neighbours are made again."""
    file = staged_file(lake, [value_of(n, PROPERTIES[0]) for n in range(3)])

    def broken(table: pa.Table) -> pa.Table:
        table = blank(table, "lib")
        at = table.schema.get_field_index("properties")
        texts = table["properties"].to_pylist()
        return table.set_column(at, table.schema.field(at), pa.array([texts[0], "{x", "[1]"]))

    made = anew(lake, written(lake, file, broken))
    assert made["lib"].to_pylist() == ["web", "", ""]
    assert made["url_host"].to_pylist() == ["shop.example"] * 3


def test_what_is_no_staged_file_is_refused(lake: Lake) -> None:
    """One that is damaged, and one of a form that cannot become today's; nothing is written."""
    file = staged_file(lake, [value_of(n) for n in range(3)])

    def strange(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("flags")
        return table.set_column(at, "flags", pa.array(["many"] * len(table)))

    with pytest.raises(BatchError, match="column flags of a staged file is string"):
        reenriched(lake, written(lake, file, strange), "remade/new.parquet", 1, lambda: None)
    Path(lake.full_path(file.path)).write_bytes(b"no file")
    with pytest.raises(StagedFileDamaged):
        reenriched(lake, file, "remade/new.parquet", 1, lambda: None)
    assert not list(Path(lake.full_path("remade")).rglob("*"))


def test_a_worker_that_was_replaced_publishes_nothing(lake: Lake) -> None:
    """It is asked last."""
    file = staged_file(lake, [value_of(n) for n in range(3)])
    older = written(lake, file, lambda table: blank(table, "lib"))

    def replaced() -> None:
        raise BatchError("another worker has taken over")

    with pytest.raises(BatchError, match="taken over"):
        reenriched(lake, older, "remade/new.parquet", 1, replaced)
    assert not [path for path in Path(lake.full_path("remade")).rglob("*") if path.is_file()]


def test_a_file_has_two_names_until_one_is_deleted(lake: Lake) -> None:
    """Said again it is the same; the other name keeps the bytes; what is not there is named."""
    with lake.create("events/one.parquet") as sink:
        sink.write(b"rows")
    for _ in range(2):
        lake.copy("events/one.parquet", "replaced/events/one.parquet")
    lake.delete("events/one.parquet")
    lake.check("replaced/events/one.parquet", sink.bytes, sink.sha256)
    assert [path.name for path in Path(lake.full_path("")).rglob("*") if path.is_file()] == [
        "one.parquet"
    ]
    with pytest.raises(StagedFileDamaged, match=r"events/one.parquet is not in the lake"):
        lake.copy("events/one.parquet", "replaced/events/two.parquet")


def test_row_groups_are_what_staging_makes_them(lake: Lake) -> None:
    """So memory is bounded by one of them, whatever the size of the file."""
    file = staged_file(lake, [value_of(n) for n in range(ROW_GROUP_ROWS + 10)])
    older = written(lake, file, lambda table: blank(table, "lib"), groups=ROW_GROUP_ROWS)
    new = reenriched(lake, older, "remade/new.parquet", 1, lambda: None)
    assert new is not None
    assert [len(rows) for rows in row_groups(lake, new)] == [ROW_GROUP_ROWS, 10]
