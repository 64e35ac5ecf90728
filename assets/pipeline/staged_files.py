"""The Parquet files of a batch while they are written: at most one of each kind.

A thread writes one table while the next is made; a second one waits until the first is written.
All files appear in the lake when the with-block ends well, none when it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq

from assets.pipeline.batch import Batch, Kind, Staged, StagedFile
from assets.pipeline.clock import StageClock
from assets.pipeline.errors import StagedFileLetGo
from assets.pipeline.lake import HashingWriter, Lake, lake_path
from orchestration.times import utc

# Columns with few values; dictionaries of the others cost more than they save.
_DICTIONARY_COLUMNS = [
    "event",
    "user_agent",
    "sdk",
    "lib",
    "lib_version",
    "os",
    "os_version",
    "browser",
    "device_type",
    "referring_domain",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
    "url_host",
    "arrival_date",
    "_topic",
    "_partition",
    "_batch_id",
    "_generation",
    "project_id",
    "flags",
]

# Columns of which each row group says the least and the most: what a day is searched by, and what
# the assets tell. Of all of them it would cost a tenth of the writing.
_STATISTICS_COLUMNS = ["project_id", "event", "timestamp", "_appended_at", "_partition", "_offset"]


@dataclass
class _Open:
    path: str
    sink: HashingWriter
    parquet: pq.ParquetWriter
    rows: int = 0


class StagedFiles:
    """Takes tables, each of which becomes a row group of the file of its kind."""

    def __init__(
        self, path_of: Callable[[Kind], str], lake: Lake, clock: StageClock, stack: ExitStack
    ) -> None:
        self._path_of = path_of
        self._lake = lake
        self._clock = clock
        self._stack = stack
        self._thread = stack.enter_context(ThreadPoolExecutor(1, "parquet"))
        self._under_way: Future[None] | None = None
        self._open: dict[Kind, _Open] = {}

    def write(self, kind: Kind, table: pa.Table) -> None:
        """Add a row group, soon; the first one of a kind opens its file.

        Raises what went wrong with the one before it.
        """
        self._await_written()
        self._under_way = self._thread.submit(self._write, kind, table)

    def _write(self, kind: Kind, table: pa.Table) -> None:
        with self._clock.stage("stage"):
            if kind not in self._open:
                self._open[kind] = self._new_file(kind, table.schema)
            file = self._open[kind]
            file.parquet.write_table(table, row_group_size=max(len(table), 1))
            file.rows += len(table)

    def _await_written(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _new_file(self, kind: Kind, schema: pa.Schema) -> _Open:
        path = self._path_of(kind)
        sink = self._stack.enter_context(self._lake.create(path))
        parquet = pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=_DICTIONARY_COLUMNS if kind is Kind.EVENTS else False,
            write_statistics=_STATISTICS_COLUMNS if kind is Kind.EVENTS else True,
        )
        return _Open(path, sink, parquet)

    def finish(self) -> None:
        """Write the footers; nothing may be added any more."""
        try:
            self._await_written()
        finally:
            for file in self._open.values():
                file.parquet.close()

    def registered(self) -> tuple[StagedFile, ...]:
        """What the ledger is to know of the finished files."""
        return tuple(
            StagedFile(kind, file.path, file.rows, file.sink.bytes, file.sink.sha256)
            for kind, file in self._open.items()
        )


def staged_path(kind: str, batch: Batch, attempt: int, suffix: str = "parquet") -> str:
    """Where an attempt at staging writes its file: never where another one did."""
    name = batch.batch_id if attempt == 1 else f"{batch.batch_id}-{attempt}"
    return lake_path(kind, batch.arrival_date, f"{name}.{suffix}")


def check_staged(lake: Lake, file: StagedFile) -> None:
    """Raise StagedFileDamaged unless a file is in the lake as it was registered.

    StagedFileLetGo when it is not meant to be there any more.
    """
    if file.let_go_at is not None:
        raise StagedFileLetGo(told_let_go(file))
    lake.check(file.path, file.bytes, file.sha256)


def told_let_go(file: StagedFile) -> str:
    """In words, when housekeeping let go of a file and by which setting."""
    letters = file.kind is Kind.DEAD_LETTERS
    setting = "TIDEMARK_KEEP_DEAD_LETTERS_DAYS" if letters else "TIDEMARK_KEEP_STAGED_DAYS"
    return f"{file.path} was let go on {let_go_on(file)} ({setting})"


def let_go_on(file: StagedFile) -> date:
    """The UTC day on which housekeeping let go of a file."""
    return utc(file.let_go_at or 0).date()


def staged_places(lake: Lake, staged: Staged, kind: Kind) -> list[tuple[int, int]]:
    """Partition and offset of each row of a staged file, in its order; none without a file."""
    file = staged.file(kind)
    if file is None:
        return []
    table = pq.read_table(
        lake.full_path(file.path),
        columns=["_partition", "_offset"],
        filesystem=lake.filesystem,
        partitioning=None,
    )
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@contextmanager
def staged_files(
    path_of: Callable[[Kind], str], lake: Lake, clock: StageClock, may_publish: Callable[[], None]
) -> Iterator[StagedFiles]:
    """The files of a batch, each where `path_of` says.

    `may_publish` raises when this worker must not publish any more.
    """
    with ExitStack() as stack:
        files = StagedFiles(path_of, lake, clock, stack)
        try:
            yield files
        finally:
            files.finish()  # also after an error: a writer left open would write when collected
        may_publish()
