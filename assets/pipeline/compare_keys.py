"""Has the index got keys of this batch since the batch was compared with it?

    made, against the key files of then ─▶ catch_up: against those that are new
                      ▲                        ├─ none of its keys is in them: registered
                      └─ SeenMeanwhile ────────┘  some are: staged again

For batches that are staged side by side: the order in which they are registered is the order of the
index. A file that is new by its name alone, because others were merged into it, holds no key that
the batch has not met: those that it had met are no events of the batch, so they are not found.

Invariant: as the transaction that registers a batch sees the ledger, that names no key file of the
batch's window which the batch was not compared with. Registrations follow each other: each locks
the row of the topics' lease before it looks, and sees all that was committed before it looked
(PostgreSQL's READ COMMITTED; in a snapshot that is taken before the lock it would not).

Two write key files without that lease: a replay, and whoever makes the index anew for one. Theirs
may be committed between the look and the end of the registration, as if they had come right after
it. That doubles nothing that it would not have doubled then: what such a file has that no other had
are keys of older batches which the index had lost, and a batch that is registered meanwhile, as any
before it, was compared without them.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
from sqlalchemy import Connection

from assets.pipeline.batch import Batch, KeyFile
from assets.pipeline.errors import SeenMeanwhile
from assets.pipeline.key_copies import NoCopies
from assets.pipeline.key_files import open_key_file
from assets.pipeline.key_upkeep import Window, open_window
from assets.pipeline.lake import Lake
from assets.pipeline.worker import Worker
from orchestration.ledger.batches import unstaged_batches
from orchestration.ledger.keys import live_key_files, live_paths

_NAMED = 3  # batches


class IndexMoved(Exception):
    """The index has files that the batch was not compared with: catch up, and try again."""


class Comparison:
    """What a batch, whose own keys are in `key_file`, was compared with so far."""

    def __init__(
        self, worker: Worker, batch: Batch, key_file: KeyFile | None, window: Window
    ) -> None:
        self._worker = worker
        self._batch = batch
        self._key_file = key_file
        self._window = window
        self._compared = set(window.paths)

    def catch_up(self) -> None:
        """Compare with what is new. Raises SeenMeanwhile."""
        first, last = self._window.first, self._window.last
        live = {file.path for file in live_key_files(self._worker.ledger, first, last)}
        fresh = sorted(live - self._compared)
        if fresh and self._key_file is not None:
            self._compare(fresh, self._key_file)
        self._compared |= live

    def check(self, connection: Connection) -> None:
        """Raise IndexMoved when there is something new once more, in the caller's transaction."""
        if live_paths(connection, self._window.first, self._window.last) - self._compared:
            raise IndexMoved

    def _compare(self, fresh: list[str], key_file: KeyFile) -> None:
        lake = self._worker.lake
        void = unstaged_batches(self._worker.ledger, self._window.first, self._window.last)
        window = replace(self._window, paths=tuple(fresh), void=tuple(void))
        seen = open_window(self._index_with(fresh), self._batch, window)
        own = open_key_file(lake.filesystem, lake.full_path(key_file.path))
        found = [seen.find(keys.h1, keys.h2) for keys in own]
        if again := sum(len(one.rows) for one in found):
            others = pa.concat_arrays([one.batch_id for one in found]).unique().to_pylist()
            raise SeenMeanwhile(
                f"{again:,} events of batch {self._batch.batch_id} were registered by other "
                f"batches ({', '.join(others[:_NAMED])}) while it was staged: it is staged again"
            )

    def _index_with(self, paths: list[str]) -> Lake:
        """Where key files are that are not read whole, if there is such a place."""
        lake = self._worker.lake
        try:
            copies = self._worker.key_copies.folder_with(lake, paths)
        except NoCopies:
            return lake
        return lake if copies is None else Lake(copies)
