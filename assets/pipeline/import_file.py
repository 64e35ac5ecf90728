"""The file of an import: looked through once, then read range by range.

    look_through ─▶ SHA-256, rows, where batches may be cut      one pass over all of it
    chunks(range) ─▶ Chunk(lines)                                goes on where the last range ended

JSON lines, plain or compressed (gzip, zstd, brotli), or Parquet; which it is, is told by its first
bytes. A row of Parquet becomes the line of JSON that it would be in the other form, so that all
that comes after knows lines only. Rows are counted from 1. A blank line holds no event: it is
absent, as an offset of Kafka that holds no record is.

Invariants: memory holds a chunk and one line, however large the file or its lines are. What is
read belongs to the bytes that were hashed: the file's size and time are asked before and after.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from assets.pipeline.columns import DEAD_LETTER_BYTES, RAW
from assets.pipeline.errors import ImportTrouble, LakeTrouble
from assets.pipeline.lake import filesystem_of
from assets.pipeline.parquet_rows import lines_of
from assets.pipeline.read import CHUNK_BYTES, CHUNK_RECORDS, Chunk
from orchestration.addresses import public_address
from orchestration.ledger.imports import FIRST_ROW

MAX_LINE_BYTES = 4 << 20
"""A longer line is no event: its first DEAD_LETTER_BYTES are kept, and it is never in memory."""

_BLOCK_BYTES = 1 << 20
_TOLD_EVERY_BYTES = 1 << 30
_BOM = b"\xef\xbb\xbf"
_UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException)
_MAGIC = {b"PAR1": "parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_OF_NAME = {".br": "brotli"}  # which has no first bytes of its own

Line = tuple[int, bytes, int]
"""A row's number, its line (cut if it is too long), and how many bytes the line has."""


class Stamp(NamedTuple):
    """What changes when somebody writes the file: its bytes, and the time of it in ns."""

    bytes: int
    mtime_ns: int | None


@dataclass(frozen=True)
class Contents:
    """What the file holds. `cuts` are the rows behind which a batch may end, the last one's too."""

    form: str
    sha256: str
    bytes: int
    rows: int
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class LineChunk(Chunk):
    """Some lines of a file, and how long each really is: those too long are cut."""

    lengths: tuple[int, ...] = ()

    def headers(self, row: int) -> str:
        """A line has none."""
        return "[]"


class ImportFile:
    """A file, local or wherever pyarrow reaches."""

    def __init__(self, uri: str, appended_at: int = 0) -> None:
        """`appended_at` (ms) is what its rows are said to have arrived at; 0: not begun yet."""
        shown = public_address(uri)
        self.uri = shown if "://" in uri else str(Path(uri).expanduser().absolute())
        self.appended_at = appended_at
        self.looked_at: Stamp | None = None
        self._lines: tuple[int, Iterator[Line]] | None = None
        try:
            self._filesystem, self._path = filesystem_of(uri)
        except LakeTrouble as error:
            raise ImportTrouble(str(error)) from None

    @property
    def file_name(self) -> str:
        """Its name without the folders."""
        return str(self._path).rpartition("/")[2]

    def stamp(self) -> Stamp:
        """As it is now. Raises ImportTrouble when it is not there."""
        with self._troubles():
            info = self._filesystem.get_file_info(self._path)
        if info.type != fs.FileType.File:
            what = "is not there" if info.type == fs.FileType.NotFound else "is no file"
            raise ImportTrouble(f"{self.uri} {what}{self._stays}")
        return Stamp(int(info.size or 0), info.mtime_ns)

    def look_through(
        self, max_rows: int, max_bytes: int, say: Callable[[str], None] = lambda line: None
    ) -> Contents:
        """Read all of it once. Batches of so many rows, or bytes of their lines, can be cut."""
        before = self.stamp()
        with self._troubles():
            form, compression = self._form()
            if form == "parquet":
                contents = self._look_through_parquet(max_rows, max_bytes, say)
            else:
                contents = self._look_through_lines(compression, max_rows, max_bytes, say)
        self.looked_at = before
        self.check_unchanged()
        return contents

    def check_is(self, sha256: str, say: Callable[[str], None]) -> None:
        """Raise ImportTrouble unless the file has these contents still."""
        if self.looked_at is not None:
            self.check_unchanged()
            return
        before = self.stamp()
        with self._troubles(), self._open_hashed(say, before.bytes) as raw:
            raw.drain()
            found = raw.sha256
        if found != sha256:
            raise self._changed()
        self.looked_at = before

    def check_unchanged(self) -> None:
        """Raise ImportTrouble when somebody has written the file since it was looked through."""
        if self.looked_at is not None and self.stamp() != self.looked_at:
            raise self._changed()

    def chunks(self, start: int, end: int) -> Iterator[Chunk]:
        """The lines of rows `[start, end)`, without the blank ones. Raises ImportTrouble."""
        if start >= end:
            return
        with self._troubles():
            at, lines = self._lines or (0, iter(()))
            self._lines = None  # unless this comes to its end
            if at != start:
                lines = self._lines_from(start)
            batch: list[Line] = []
            size = 0
            for line in lines:
                number, text, _ = line
                if text.strip():
                    batch.append(line)
                    size += len(text)
                if batch and (len(batch) >= CHUNK_RECORDS or size >= CHUNK_BYTES):
                    yield self._chunk(batch)
                    batch, size = [], 0
                if number >= end - 1:
                    break
            else:
                raise self._changed()
            if batch:
                yield self._chunk(batch)
            self._lines = end, lines

    def _chunk(self, lines: list[Line]) -> LineChunk:
        numbers, texts, lengths = zip(*lines, strict=True)
        records = pa.record_batch(
            [
                pa.array([0] * len(lines), pa.int32()),
                pa.array(numbers, pa.int64()),
                pa.array([self.appended_at] * len(lines), pa.int64()),
                pa.nulls(len(lines), pa.binary()),
                pa.array(texts, pa.binary()),
            ],
            schema=RAW,
        )
        return LineChunk(records, (), lengths)

    def _lines_from(self, start: int) -> Iterator[Line]:
        form, compression = self._form()
        if form == "parquet":
            with self._filesystem.open_input_file(self._path) as source:
                for number, line in lines_of(pq.ParquetFile(source), start):
                    too_long = len(line) > MAX_LINE_BYTES
                    yield number, line[:DEAD_LETTER_BYTES] if too_long else line, len(line)
            return
        with self._filesystem.open_input_stream(self._path, compression=None) as raw:
            yield from _lines(_decoded(raw, compression), start)

    def _form(self) -> tuple[str, str | None]:
        with self._filesystem.open_input_stream(self._path, compression=None) as raw:
            first = raw.read(4)
        for magic, found in _MAGIC.items():
            if first.startswith(magic):
                return ("parquet", None) if found == "parquet" else ("jsonl", found)
        return "jsonl", _OF_NAME.get(Path(self._path).suffix)

    def _look_through_parquet(
        self, max_rows: int, max_bytes: int, say: Callable[[str], None]
    ) -> Contents:
        with self._open_hashed(say, self.stamp().bytes) as raw:
            raw.drain()
        with self._filesystem.open_input_file(self._path) as source:
            footer = pq.ParquetFile(source).metadata
        size = sum(footer.row_group(at).total_byte_size for at in range(footer.num_row_groups))
        a_row = max(1.0, size / max(1, footer.num_rows))
        step = max(1, min(max_rows, int(max_bytes / a_row)))
        end = FIRST_ROW + footer.num_rows
        cuts = (*range(FIRST_ROW + step, end, step), end)
        return Contents("parquet", raw.sha256, raw.bytes, footer.num_rows, cuts)

    def _look_through_lines(
        self,
        compression: str | None,
        max_rows: int,
        max_bytes: int,
        say: Callable[[str], None],
    ) -> Contents:
        cutter = _Cutter(max_rows, max_bytes)
        with self._open_hashed(say, self.stamp().bytes) as raw:
            stream = _decoded(raw, compression)
            while block := stream.read(_BLOCK_BYTES):
                if cutter.is_new and block.removeprefix(_BOM).lstrip()[:1] == b"[":
                    raise ImportTrouble(
                        f"{self.uri} is one JSON array, not a line for each event: write it anew "
                        f"with `jq -c '.[]'`"
                    )
                cutter.take(block)
            raw.drain()
        rows = cutter.finish()
        return Contents("jsonl", raw.sha256, raw.bytes, rows, tuple(cutter.cuts))

    @contextmanager
    def _open_hashed(self, say: Callable[[str], None], size: int) -> Iterator[_Hashed]:
        with self._filesystem.open_input_stream(self._path, compression=None) as raw:
            yield _Hashed(raw, lambda read: say(f"{self.uri}: {read:,} of {size:,} bytes hashed"))

    def _changed(self) -> ImportTrouble:
        return ImportTrouble(
            f"{self.uri} is not the file any more that it was: somebody has changed it"
            f"{self._stays}. As it is now it is another file, with an import of its own"
        )

    @property
    def _stays(self) -> str:
        """What a person may fear for, once there is something: the import was begun."""
        return "; what is loaded of it stays" if self.appended_at else ""

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ImportTrouble(
                f"{self.uri} is not there any more{self._stays}. Bring it back and say the same "
                "`tidemark import` again"
            ) from error
        except _UNREADABLE as error:
            raise ImportTrouble(f"{self.uri} cannot be read: {error}") from error


class _Hashed:
    """A stream that hashes what is read of it, with what decompressors ask of a file."""

    closed = False

    def __init__(self, raw: Any, told: Callable[[int], None]) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._told = told
        self._tell_at = _TOLD_EVERY_BYTES
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        block: bytes = self._raw.read(size if size >= 0 else None)
        self._hash.update(block)
        self.bytes += len(block)
        if self.bytes >= self._tell_at:
            self._tell_at += _TOLD_EVERY_BYTES
            self._told(self.bytes)
        return block

    def drain(self) -> None:
        """Read what is left."""
        while self.read(_BLOCK_BYTES):
            pass

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is not."""
        return False

    def seekable(self) -> bool:
        """It is not."""
        return False

    def close(self) -> None:
        """Whoever has opened it closes it."""

    @property
    def sha256(self) -> str:
        """Of all that was read so far, in hexadecimal."""
        return self._hash.hexdigest()


class _Cutter:
    """Counts the lines of blocks, and says where batches of them may end."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self._max_rows, self._max_bytes = max_rows, max_bytes
        self._row = FIRST_ROW  # of the line that the next byte belongs to
        self._start = FIRST_ROW
        self._size = 0  # of the lines since the last cut
        self._in_line = False
        self.is_new = True
        self.cuts: list[int] = []

    def take(self, block: bytes) -> None:
        """Count a block's lines."""
        self.is_new = False
        at = 0
        while at < len(block):
            wanted = self._start + self._max_rows - self._row  # line breaks until a cut by rows
            breaks = block.count(b"\n", at)
            if breaks < wanted and self._size + len(block) - at < self._max_bytes:
                self._row += breaks
                self._size += len(block) - at
                break
            end = _behind_break(block, at, wanted) if breaks >= wanted else len(block)
            if self._size + end - at >= self._max_bytes and breaks:
                # Behind the line with which it is full: then a batch has one line at least.
                full = max(at, at + self._max_bytes - self._size - 1)
                found = block.find(b"\n", full, end)
                end = min(end, found + 1) if found >= 0 else end
            here = block.count(b"\n", at, end)
            self._row += here
            self._size += end - at
            at = end
            if here and block[end - 1 : end] == b"\n" and self._is_full():
                self._cut()
        self._in_line = block[-1:] != b"\n"

    def finish(self) -> int:
        """How many rows there are."""
        if self._in_line:
            self._row += 1
        if self._row > self._start or not self.cuts:
            self._cut()
        return self._row - FIRST_ROW

    def _is_full(self) -> bool:
        return self._row - self._start >= self._max_rows or self._size >= self._max_bytes

    def _cut(self) -> None:
        self.cuts.append(self._row)
        self._start, self._size = self._row, 0


def _behind_break(block: bytes, at: int, number: int) -> int:
    """Where the number-th line break from there on ends."""
    for _ in range(number):
        at = block.index(b"\n", at) + 1
    return at


def _decoded(raw: Any, compression: str | None) -> Any:
    """The stream without its compression."""
    if compression is None:
        return raw
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    source = pa.PythonFile(raw, mode="r") if isinstance(raw, _Hashed) else raw
    return pa.CompressedInputStream(source, compression)


def _lines(stream: Any, start: int) -> Iterator[Line]:
    """The lines of a stream from a row on; of one that is too long only the beginning is kept."""
    row, line, length = FIRST_ROW, b"", 0
    is_first = True
    while block := stream.read(_BLOCK_BYTES):
        if is_first:
            block, is_first = block.removeprefix(_BOM), False
        if row < start:
            breaks = block.count(b"\n")
            if row + breaks < start:
                row += breaks
                continue
            block = block[_behind_break(block, 0, start - row) :]
            row = start
        parts = block.split(b"\n")
        for number, part in enumerate(parts):
            if number:
                yield row, line, length
                row, line, length = row + 1, b"", 0
            length += len(part)
            line = line + part if length <= MAX_LINE_BYTES else (line + part)[:DEAD_LETTER_BYTES]
    if length:
        yield row, line, length
