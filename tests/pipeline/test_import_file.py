"""The file of an import: its rows, whatever its form, and what is wrong with it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.pipeline import import_file
from assets.pipeline.columns import DEAD_LETTER_BYTES
from assets.pipeline.errors import ImportTrouble
from assets.pipeline.import_file import ImportFile, LineChunk
from tests.exports import exported, lines_of, write_lines, write_parquet

COMPRESSIONS = [None, "gzip", "zstd", "brotli"]


def rows_of(file: ImportFile, start: int, end: int) -> list[tuple[int, bytes]]:
    """The rows of a range, with their numbers."""
    found: list[tuple[int, bytes]] = []
    for chunk in file.chunks(start, end):
        offsets = chunk.records.column("offset").to_pylist()
        found += zip(offsets, chunk.records.column("value").to_pylist(), strict=True)
    return found


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_lines_are_the_same_however_they_are_compressed(
    tmp_path: Path, compression: str | None
) -> None:
    """Counted from 1, in any ranges, one after the other or from the middle; hashed as it lies."""
    lines = lines_of(range(10))
    name = "x.br" if compression == "brotli" else "x"
    file = ImportFile(write_lines(tmp_path / name, lines, compression))
    contents = file.look_through(4, 1 << 30)
    assert (contents.form, contents.rows, contents.cuts) == ("jsonl", 10, (5, 9, 11))
    assert contents.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert contents.bytes == (tmp_path / name).stat().st_size
    whole = list(enumerate(lines, 1))
    assert rows_of(file, 1, 5) + rows_of(file, 5, 11) == whole
    assert rows_of(file, 9, 11) == whole[8:]
    assert rows_of(file, 3, 4) == whole[2:3]
    assert rows_of(ImportFile((tmp_path / name).as_uri()), 1, 11) == whole


def test_rows_of_parquet_are_lines(tmp_path: Path) -> None:
    """Across row groups; times and objects in strings as the same export has them in lines."""
    file = ImportFile(write_parquet(tmp_path / "x.parquet", range(10), row_group=4))
    contents = file.look_through(3, 1 << 30)
    assert (contents.form, contents.rows, contents.cuts) == ("parquet", 10, (4, 7, 10, 11))
    found = rows_of(file, 1, 4) + rows_of(file, 4, 11)
    assert [number for number, _ in found] == list(range(1, 11))
    assert rows_of(file, 6, 8) == found[5:7]
    row = json.loads(found[6][1])
    assert row["uuid"] == exported(6)["uuid"]
    assert json.loads(row["properties"]) == exported(6)["properties"]
    assert row["timestamp"].replace("Z", "+00:00") == exported(6)["timestamp"]


def test_parquet_whose_text_is_bytes(tmp_path: Path) -> None:
    """As ClickHouse writes it unless told otherwise: text, and UUIDs of 16 bytes, are text."""
    table = pa.table(
        {
            "uuid": pa.array([bytes(range(16))], pa.binary(16)),
            "event": pa.array(["näme".encode()], pa.binary()),
            "at": pa.array([1_683_356_892_123_456_789], pa.timestamp("ns")),
            "of": pa.array(["x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    [(_, line)] = rows_of(ImportFile(str(tmp_path / "x.parquet")), 1, 2)
    assert json.loads(line) == {
        "uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "event": "näme",
        "at": "2023-05-06T07:08:12.123456Z",
        "of": "x",
    }


def test_blank_lines_hold_nothing_and_count(tmp_path: Path) -> None:
    """So does a last line without an end; a byte order mark is none of the first line."""
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\n\n  \r\nb\n\nc")
    file = ImportFile(str(tmp_path / "x"))
    assert file.look_through(100, 1 << 30).rows == 6
    assert rows_of(file, 1, 7) == [(1, b"a"), (4, b"b"), (6, b"c")]
    (tmp_path / "empty").write_bytes(b"")
    empty = ImportFile(str(tmp_path / "empty")).look_through(100, 1 << 30)
    assert (empty.rows, empty.cuts) == (0, (1,))


def test_a_huge_line_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning is kept, and how long it was; the lines around it are as they are."""
    monkeypatch.setattr(import_file, "MAX_LINE_BYTES", 3 << 20)
    huge = b"x" * ((7 << 20) + 5)
    (tmp_path / "x").write_bytes(b"before\n" + huge + b"\nafter\n")
    file = ImportFile(str(tmp_path / "x"))
    assert file.look_through(100, 1 << 30).rows == 3
    [chunk] = file.chunks(1, 4)
    assert isinstance(chunk, LineChunk)
    assert chunk.lengths == (6, len(huge), 5)
    assert chunk.records.column("value").to_pylist() == [
        b"before",
        b"x" * DEAD_LETTER_BYTES,
        b"after",
    ]


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 2_000),
    st.integers(1, 300),
)
def test_batches_are_cut_by_rows_and_by_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: Sequence[int],
    max_rows: int,
    max_bytes: int,
    block: int,
) -> None:
    """None has more rows than it may, none goes on when it is full, and all rows are in one."""
    path = tmp_path_factory.mktemp("cut") / "x"
    path.write_bytes(b"".join(b"y" * size + b"\n" for size in sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_file, "_BLOCK_BYTES", block)
        contents = ImportFile(str(path)).look_through(max_rows, max_bytes)
        assert contents.rows == len(sizes)
        starts = (1, *contents.cuts)
        assert contents.cuts[-1] == len(sizes) + 1
        for start, end in zip(starts, contents.cuts, strict=False):
            assert 0 < end - start <= max_rows
            held = [size + 1 for size in sizes[start - 1 : end - 1]]
            assert sum(held[:-1]) < max_bytes
        found = [line for _, line in rows_of(ImportFile(str(path)), 1, len(sizes) + 1)]
        assert found == [b"y" * size for size in sizes if size]


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Not there, no file, cut off, no Parquet, an array, no such place: each in a sentence."""
    whole = b"".join(gzip.compress(line + b"\n") for line in lines_of(range(50)))
    for name, content, told in (
        ("cut.gz", whole[:-9], "cannot be read"),
        ("torn.gz", whole[:100] + b"?" + whole[101:], "cannot be read"),
        ("x.parquet", b"PAR1 and no more", "cannot be read"),
        ("x.json", b'[{"uuid": 1}]', "jq -c"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImportTrouble, match=told):
            ImportFile(str(tmp_path / name)).look_through(10, 1 << 30)
    with pytest.raises(ImportTrouble, match="is not there"):
        ImportFile(str(tmp_path / "nothing")).look_through(10, 1 << 30)
    with pytest.raises(ImportTrouble, match="is no file"):
        ImportFile(str(tmp_path)).look_through(10, 1 << 30)
    with pytest.raises(ImportTrouble, match="no place"):
        ImportFile("gopher://x/y")


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    """By its size or its time once it was hashed, else by its hash; and when it is too short."""
    path = tmp_path / "x"
    file = ImportFile(write_lines(path, lines_of(range(5))))
    contents = file.look_through(10, 1 << 30)
    file.check_unchanged()
    ImportFile(str(path)).check_is(contents.sha256, lambda line: None)
    write_lines(path, lines_of(range(3)))
    with pytest.raises(ImportTrouble, match="somebody has changed it"):
        file.check_unchanged()
    with pytest.raises(ImportTrouble, match="somebody has changed it"):
        ImportFile(str(path)).check_is(contents.sha256, lambda line: None)
    with pytest.raises(ImportTrouble, match="somebody has changed it"):
        list(file.chunks(1, 6))
    path.unlink()
    with pytest.raises(ImportTrouble, match="is not there"):
        file.check_unchanged()
