"""Copies of key files on this machine's disk, for the stagers of a run: one for all of them.

    the lake, an object store ─▶ <home>/key_copies/<topic>/<the run's own>/keys/….arrow ─▶ mapped

From an object store a key file is read whole: each stager would hold the index in its memory. A
local lake needs no copies. They are made when a batch that needs them is begun, and are gone when
no batch under way needs them: so the disk holds no more than the index of these batches' dates.

What a crash leaves is deleted by the next run that has the lease. One that wakes later has mapped
what it needs, or finds nothing; a folder of its own keeps it away from its successor's copies.
Invariant: a copy that a stager is told of is whole, and is never written to again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from assets.pipeline.errors import KeyFileUnreadable, LakeTrouble
from assets.pipeline.lake import Lake
from assets.pipeline.object_store import is_missing, is_of_a_store, told
from orchestration.settings import Settings

_BLOCK_BYTES = 8 << 20


class NoCopies(Exception):
    """This machine's disk has no room for copies, or does not take them."""


class KeyCopies:
    """A run's copies, for the length of a with-block under the lease."""

    def __init__(self, settings: Settings) -> None:
        self._all = settings.home / "key_copies" / settings.topic  # of which one lease is
        self._keep_free_bytes = settings.lake_min_free_bytes
        self._folder: Path | None = None
        self._paths: set[str] = set()

    def __enter__(self) -> KeyCopies:
        shutil.rmtree(self._all, ignore_errors=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._paths = None, set()

    def folder_with(self, lake: Lake, paths: Iterable[str]) -> str | None:
        """A folder with these key files of the lake, under the same names; None: the lake is one.

        Raises NoCopies; KeyFileUnreadable of what the lake has not, LakeTrouble when it is away.
        """
        if lake.is_local:
            return None
        missing = sorted(set(paths) - self._paths)
        coming = _bytes_of(lake, missing)
        try:
            folder = self._made()
            free = shutil.disk_usage(folder).free
            if missing and free - coming < self._keep_free_bytes:
                raise NoCopies(
                    f"{free:,} bytes are free in {folder.parent}, where {coming:,} of the index "
                    "were to be copied; TIDEMARK_LAKE_MIN_FREE_BYTES is "
                    f"{self._keep_free_bytes:,}: make room there"
                )
            for path in missing:
                _copy(lake, path, folder / path)
                self._paths.add(path)
        except OSError as error:
            raise NoCopies(f"the index could not be copied to this machine: {error}") from error
        return str(folder)

    def keep_only(self, paths: Collection[str]) -> None:
        """Delete the other copies; who has them mapped keeps what is in them."""
        for path in self._paths - set(paths):
            if self._folder is not None:
                (self._folder / path).unlink(missing_ok=True)
            self._paths.discard(path)

    def _made(self) -> Path:
        if self._folder is None:
            self._all.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=self._all))
        return self._folder


def _bytes_of(lake: Lake, paths: Collection[str]) -> int:
    try:
        infos = lake.filesystem.get_file_info([lake.full_path(path) for path in paths])
    except OSError as error:
        raise _cannot_be_read(", ".join(paths), error) from error
    return sum(info.size or 0 for info in infos)


def _copy(lake: Lake, path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as sink:
            for block in _blocks(lake, path):
                sink.write(block)
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise


def _blocks(lake: Lake, path: str) -> Iterator[bytes]:
    try:
        with lake.filesystem.open_input_stream(lake.full_path(path)) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise _cannot_be_read(path, error) from error


def _cannot_be_read(path: str, error: OSError) -> LakeTrouble:
    """What a store that does not answer, or refuses, says is not for want of this file."""
    if is_of_a_store(error) and not is_missing(error):
        return LakeTrouble(f"reading {path} in the lake failed: {told(error)}")
    return KeyFileUnreadable(path, str(error))
