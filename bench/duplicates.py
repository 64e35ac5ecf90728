"""Duplicates: what looking them up costs a batch, by how many keys are in the window.

    key files as batches leave and merges keep them ─▶ stage the same 500,000 records ─▶ CPU of the
    look-up, its share of staging, of the index's upkeep, bytes on disk

Staging is the larger part of what a batch costs; reading, loading and the server come on top, so
the share of a whole batch is smaller than what stands here. One record in a hundred repeats one
that is in the window. Key files were just written and are mapped into memory: no disk
is waited for.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
from pyarrow import fs
from rich.console import Console

from assets.pipeline.batch import Batch, Kind, Range, batch_id
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import RAW
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.key_files import (
    Keys,
    files_to_merge,
    merge_key_files,
    places_in_order,
    write_key_file,
)
from assets.pipeline.lake import Lake
from assets.pipeline.read import Chunk
from assets.pipeline.stage import stage
from bench import options
from bench.errors import BenchFailed, run_command
from bench.figures import Spread, describe, machine, spread, table, write_json
from bench.fill import make_records

_CHUNK_RECORDS = 4_096
_REPEATED_ONE_IN = 100
_DAYS = 2  # the default window
_KEY_BYTES = 32


@dataclass(frozen=True)
class Figures:
    """For so many keys in the window: CPU seconds of one batch, and what the index takes."""

    keys: int
    files: int
    disk_bytes: int
    lookup_cpu_s: Spread
    staging_cpu_s: Spread  # with the look-up
    upkeep_cpu_s: float  # of merging, a batch, on the way there

    @property
    def share(self) -> float:
        """Of the look-up in staging."""
        return self.lookup_cpu_s.median / self.staging_cpu_s.median


class Window:
    """The key files of a window that fills up, batch after batch, spread over its dates."""

    def __init__(self, folder: Path, batch_rows: int) -> None:
        self._folder = folder
        self._batch_rows = batch_rows
        self._days: list[list[tuple[str, int]]] = [[] for _ in range(_DAYS)]
        self._filesystem = fs.LocalFileSystem()
        self._chance = np.random.default_rng(1)
        self._written = 0
        self.batches = 0
        self.upkeep_cpu_s = 0.0

    @property
    def files(self) -> list[tuple[str, int]]:
        """Path and rows of each file, oldest first."""
        return [file for day in self._days for file in day]

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return sum(rows for _, rows in self.files)

    def add(self, keys: Keys | None = None) -> None:
        """Add a batch's keys, drawn at random unless given, and merge as a worker does."""
        keys = keys or self._drawn()
        day = self._days[self.batches % _DAYS]
        day.append((self._path(), write_key_file(self._filesystem, self._path(), keys)))
        self._written += 1
        self.batches += 1
        before = time.process_time()
        if merged := files_to_merge(day):
            rows = merge_key_files(self._filesystem, merged, self._path())
            day[:] = [file for file in day if file[0] not in merged] + [(self._path(), rows)]
            self._written += 1
            for path in merged:
                Path(path).unlink()
        self.upkeep_cpu_s += time.process_time() - before

    def _path(self) -> str:
        return str(self._folder / f"{self._written}.arrow")

    def _drawn(self) -> Keys:
        h1, h2 = self._chance.integers(0, 2**64, (2, self._batch_rows), np.uint64)
        order = places_in_order(h1, h2)
        rows = np.arange(self._batch_rows)
        return Keys(
            *(h1[order], h2[order]),
            (rows % 8).astype(np.int32),
            rows // 8 + self._batch_rows * self.batches,
            np.zeros(len(rows), np.int32),
            pa.array([f"{self.batches:024x}"]),
        )


@click.command()
@click.option("--events", default=500_000, show_default=True, type=click.IntRange(min=1_000))
@click.option(
    "--keys",
    "sizes",
    default="0,1000000,10000000,100000000",
    show_default=True,
    help="Keys in the window, ascending, with commas between.",
)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--folder", type=click.Path(path_type=Path), help="For the files; else a temporary.")
@options.json_file
def main(events: int, sizes: str, repeat: int, folder: Path | None, json_file: Path | None) -> None:
    """Measure what looking up duplicates costs a batch, with ever more keys in the window."""
    wanted = sorted(int(size) for size in sizes.split(","))
    facts = machine()
    home = Path(tempfile.mkdtemp(prefix="tidemark-bench-", dir=folder))
    try:
        _check_room(home, wanted[-1])
        figures = _measured(home, events, wanted, repeat)
    finally:
        shutil.rmtree(home)
    write_json(
        json_file,
        {"machine": facts, "figures": [{**asdict(each), "share": each.share} for each in figures]},
    )
    _show(figures, facts, events)


def _check_room(home: Path, keys: int) -> None:
    needed = keys * _KEY_BYTES * 3  # a merge has its files and their sum at once
    if shutil.disk_usage(home).free < needed:
        raise BenchFailed(f"{needed / 1e9:.0f} GB are needed in {home.parent}: see --folder")


def _measured(home: Path, events: int, sizes: list[int], repeat: int) -> list[Figures]:
    chunks = _chunks(events)
    lake = Lake(str(home / "lake"))
    known = SeenKeys(lake.filesystem, [], "0" * 24)
    _staged(lake, events, chunks, known)
    keys = known.added()
    every = np.arange(0, len(keys), _REPEATED_ONE_IN)
    repeated = Keys(
        *(keys.h1[every], keys.h2[every], keys.partition[every], keys.offset[every]),
        keys.batch[every],
        keys.batches,
    )
    window = Window(home, events)
    window.add(repeated)
    figures = []
    for size in sizes:
        while window.keys < size:
            window.add()
        figures.append(_figures(lake, window, events, chunks, repeat, len(repeated)))
    return figures


def _figures(
    lake: Lake, window: Window, events: int, chunks: list[Chunk], repeat: int, repeated: int
) -> Figures:
    paths = [path for path, _ in window.files]
    lookups, totals = [], []
    for _ in range(repeat):
        before = time.process_time()
        seen = SeenKeys(lake.filesystem, paths, "1" * 24)
        opened = time.process_time() - before
        clock, duplicates = _staged(lake, events, chunks, seen)
        if duplicates != repeated:
            raise BenchFailed(f"{duplicates:,} duplicates were found, not {repeated:,}")
        lookups.append(opened + clock.cpu["deduplicate"])
        totals.append(opened + sum(clock.cpu.values()))
    return Figures(
        window.keys,
        len(paths),
        sum(Path(path).stat().st_size for path in paths),
        spread(lookups),
        spread(totals),
        window.upkeep_cpu_s / window.batches,
    )


def _staged(lake: Lake, events: int, chunks: list[Chunk], seen: SeenKeys) -> tuple[StageClock, int]:
    """Stage the records as one batch; gives what its stages took, and how many are duplicates."""
    ranges = (Range(0, 0, events),)
    today: date = datetime.now(UTC).date() - timedelta(days=1)
    batch = Batch(
        batch_id=batch_id("bench", "bench", ranges, 0),
        topic="events",
        cluster_id="bench",
        topic_id="bench",
        arrival_date=today,
        generation=0,
        code_version="bench",
        run_id="bench",
        planned_at=time.time_ns() // 1000,
        ranges=ranges,
    )
    clock = StageClock()
    staged, key_file = stage(batch, chunks, lake, seen, clock)
    for path in [file.path for file in staged.files] + ([key_file.path] if key_file else []):
        lake.delete(path)
    file = staged.file(Kind.DUPLICATES)
    return clock, file.rows if file else 0


def _chunks(events: int) -> list[Chunk]:
    """Records as a read gives them."""
    now = time.time_ns() // 1_000_000
    chunks, keys, values = [], [], []
    for number, (key, value, _) in enumerate(make_records(events), 1):
        keys.append(key)
        values.append(value)
        if len(keys) == _CHUNK_RECORDS or number == events:
            rows = len(keys)
            records = pa.RecordBatch.from_pydict(
                {
                    "partition": pa.array(np.zeros(rows, np.int32)),
                    "offset": pa.array(np.arange(number - rows, number)),
                    "appended_at": pa.array(np.full(rows, now)),
                    "key": keys,
                    "value": values,
                },
                schema=RAW,
            )
            chunks.append(Chunk(records, []))
            keys, values = [], []
    return chunks


def _show(figures: list[Figures], facts: dict[str, object], events: int) -> None:
    shown = table(
        f"Duplicates of a batch of {events:,}",
        "keys in the window",
        *("files", "GB", "look-up, CPU s", "staging, CPU s", "share", "upkeep a batch, CPU s"),
    )
    for each in figures:
        shown.add_row(
            f"{each.keys:,}",
            str(each.files),
            f"{each.disk_bytes / 1e9:.2f}",
            each.lookup_cpu_s.show(3),
            each.staging_cpu_s.show(2),
            f"{each.share:.1%}",
            f"{each.upkeep_cpu_s:.3f}",
        )
    console = Console()
    console.print(describe(facts))
    console.print(shown)


if __name__ == "__main__":
    run_command(lambda: main(standalone_mode=False), "bench.duplicates")
