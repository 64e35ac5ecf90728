"""Letters: dead letters as the lake has them, read again and staged once more.

    dead_letters/….parquet ─read_letters─▶ chunks, as a read of Kafka gives them
              │                               │
              │                               └─judge, with today's code and projects─▶ stage
              └─ the file is held against its SHA-256 first

Invariant: a letter keeps its place. Its row, if it gets one, names the topic, partition and offset
of the record that was rejected, and its arrival date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assets.pipeline.batch import Balance, Batch, KeyFile, Kind, Range, Staged, StagedFile
from assets.pipeline.clock import StageClock
from assets.pipeline.columns import RAW
from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.errors import StagedFileDamaged
from assets.pipeline.exported_lines import judge_lines
from assets.pipeline.lake import Lake
from assets.pipeline.read import Chunk
from assets.pipeline.stage import stage
from assets.pipeline.staged_files import check_staged, staged_places
from assets.pipeline.validate import Judged, judge
from orchestration.ledger.imports import Import
from orchestration.ledger.redrives import Letter, Outcome, Place

_COLUMNS = ["reason", "key", "value", "value_length", "_appended_at", "_partition", "_offset"]

LETTERS_AT_ONCE = 1_000
"""Letters of a chunk: their values are kept whole where that may help."""

Outcomes = dict[Place, tuple[Outcome, str]]
"""What became of each letter, and for which reason it was rejected once more."""


def check_letters(lake: Lake, batch: Batch) -> StagedFile:
    """The file of a batch's dead letters. Raises StagedFileDamaged unless it is as registered."""
    file = batch.staged.file(Kind.DEAD_LETTERS) if batch.staged else None
    if file is None:
        raise StagedFileDamaged(
            f"batch {batch.batch_id} has no file of dead letters any more: its loss was accepted"
        )
    check_staged(lake, file)
    return file


def read_letters(lake: Lake, batch: Batch) -> Iterator[pa.RecordBatch]:
    """The dead letters of a batch, some at a time. Raises StagedFileDamaged, and LakeTrouble."""
    file = check_letters(lake, batch)
    try:
        with lake.open_file(file.path) as source:
            yield from pq.ParquetFile(source).iter_batches(LETTERS_AT_ONCE, columns=_COLUMNS)
    except pa.ArrowException as error:
        raise StagedFileDamaged(f"{file.path} in the lake {lake.uri}: {error}") from error


def places_in(letters: pa.RecordBatch) -> list[Place]:
    """Where each letter's record stands."""
    columns = (letters.column(name).to_pylist() for name in ("_partition", "_offset"))
    return [Place(*place) for place in zip(*columns, strict=True)]


def as_chunk(letters: pa.RecordBatch, rows: Sequence[int]) -> Chunk:
    """Some of these letters as a read of Kafka would give their records."""
    chosen = letters.take(pa.array(rows, pa.int64()))
    appended_at = chosen.column("_appended_at").cast(pa.timestamp("ms")).cast(pa.int64())
    return Chunk(
        pa.record_batch(
            [
                chosen.column("_partition"),
                chosen.column("_offset"),
                appended_at,
                chosen.column("key"),
                chosen.column("value"),
            ],
            schema=RAW,
        ),
        (),
    )


def judge_letters(
    chunk: Chunk, projects: Mapping[Place, int | None], of: Import | None = None
) -> Judged:
    """Judge records with today's code; those of project 0 get the project of their token.

    Lines of an import, `of` which they are, have its project.
    """
    if of is not None:
        return judge_lines(chunk, of)
    known = [projects.get(place) or 0 for place in _places(chunk)]
    return judge(chunk.records.column("value"), np.array(known, np.int64))


def stage_letters(
    batch: Batch,
    letters: Sequence[Letter],
    old_batches: Iterable[Batch],
    lake: Lake,
    seen: SeenKeys,
    clock: StageClock,
    attempt: int = 1,
    may_publish: Callable[[], None] = lambda: None,
    of: Import | None = None,
) -> tuple[Staged, KeyFile | None, Outcomes]:
    """Stage a redrive: what became an event, or a duplicate, as files; and every outcome.

    Raises StagedFileDamaged unless every letter is found in the files of its old batch.
    """
    projects = {letter.place: letter.project_id for letter in letters}
    outcomes: Outcomes = {}

    def judged(chunk: Chunk) -> Judged:
        found = judge_letters(chunk, projects, of)
        for row, place in enumerate(_places(chunk)):
            rejection = found.rejections.get(row)
            outcomes[place] = (
                (Outcome.EVENT, "")
                if rejection is None
                else (Outcome.REJECTED, rejection.reason.value)
            )
        return found

    staged, key_file = stage(
        replace(batch, ranges=_around(projects)),
        _chunks(lake, old_batches, projects.keys()),
        lake,
        seen,
        clock,
        attempt=attempt,
        may_publish=may_publish,
        judge_chunk=judged,
        keep_rejected=False,
    )
    if outcomes.keys() != projects.keys():
        raise StagedFileDamaged(
            f"redrive {batch.batch_id} carries {len(letters):,} dead letters, but "
            f"{len(outcomes):,} of them are in the files of their batches"
        )
    for place in staged_places(lake, staged, Kind.DUPLICATES):
        outcomes[Place(*place)] = (Outcome.DUPLICATE, "")
    balances = {
        partition: Balance(ok=balance.ok, duplicate=balance.duplicate)
        for partition, balance in staged.balances.items()
    }
    # How large records are is reckoned from what Kafka gives: these count for nothing there.
    return replace(staged, balances=balances, bytes_read=0), key_file, outcomes


def _chunks(lake: Lake, old_batches: Iterable[Batch], places: Iterable[Place]) -> Iterator[Chunk]:
    wanted = set(places)
    for batch in old_batches:
        for letters in read_letters(lake, batch):
            rows = [row for row, place in enumerate(places_in(letters)) if place in wanted]
            if rows:
                yield as_chunk(letters, rows)


def _places(chunk: Chunk) -> list[Place]:
    columns = (chunk.records.column(name).to_pylist() for name in ("partition", "offset"))
    return [Place(*place) for place in zip(*columns, strict=True)]


def _around(places: Iterable[Place]) -> tuple[Range, ...]:
    """Ranges that hold all places: staging asks for room, the ledger gets none of them."""
    offsets: dict[int, list[int]] = {}
    for place in places:
        offsets.setdefault(place.partition, []).append(place.offset)
    return tuple(
        Range(partition, min(found), max(found) + 1) for partition, found in sorted(offsets.items())
    )
