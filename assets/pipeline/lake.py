"""The lake: immutable files in a folder or an object store, written whole or not at all.

    events/arrival_date=2026-11-23/<batch_id>.parquet        what ClickHouse is loaded from
    dead_letters/arrival_date=2026-11-23/<batch_id>.parquet  rejected records
    duplicates/arrival_date=2026-11-23/<batch_id>.parquet    which record each one repeats
    keys/arrival_date=2026-11-23/…                           the index that finds duplicates
    remade/…, replaced/…   files made anew and not in use yet; files whose place such ones took

A local file is written under a name of its own, synced, and renamed. For an object store, which
cannot rename, it is written into a file without a name on this machine, and sent when it is whole:
the store shows an object only when all of it has come. Either way a crash leaves no file of the
final name, or all of it.

    written to a file without a name ─▶ sent in parts ─▶ completed: there, whole
        a crash: nothing is there          a crash: parts that nobody sees, for the bucket's
                                           lifecycle rule to remove (docs/object-store.md)

A store that has not answered was waited for (object_store.py): whoever asks this Lake for another
file within ASKED_AGAIN_S is told the same at once, so that a run through many files does not wait
for each. Key files are not asked for here.

Where a file is stands in the ledger: no listing of a folder is asked what there is. The one that
is made (`there`) only saves deleting what is gone already.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
from pyarrow import fs

from assets.pipeline.errors import LakeTrouble, StagedFileDamaged, TransientError
from assets.pipeline.failpoints import failpoint
from assets.pipeline.object_store import (
    filesystem_in_s3,
    is_missing,
    is_of_a_store,
    is_silence,
    told,
)
from orchestration.addresses import public_address
from orchestration.s3_address import is_s3, s3_address

_HASH_CHUNK_BYTES = 1 << 20
_ASK_BYTES = 8 << 20
"""What a store is asked for at once by who reads a file from end to end: each asking takes time."""
_SEND_BYTES = 8 << 20
_SENT_AT_ONCE = 4
"""Pieces that wait in memory, while a file is sent."""
ASKED_AGAIN_S = 30.0
_PARTIAL_SUFFIX = ".partial"


Doing = Literal["reading", "writing", "deleting"]

UNREADABLE = (LakeTrouble, StagedFileDamaged, pa.ArrowException)
"""What reading a Parquet file may raise that is away or damaged."""


class HashingWriter:
    """A binary sink that counts and hashes what passes through it."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        self._hash.update(data)
        length = len(memoryview(data).cast("B"))
        self.bytes += length
        self._sink.write(data)
        return length

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self) -> None:
        """Closing the sink is up to the lake."""

    @property
    def sha256(self) -> str:
        """The hash of everything written so far, in hex."""
        return self._hash.hexdigest()


def filesystem_of(uri: str) -> tuple[fs.FileSystem, str]:
    """Where a URI or a folder is, and its path there.

    Raises LakeTrouble, which does not say the keys that the URI may hold.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        if is_s3(uri):
            address = s3_address(uri, os.environ)
            return filesystem_in_s3(address), address.full_path
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        shown = public_address(uri)
        reason = told(error).replace(uri, shown)
        raise LakeTrouble(f"{shown} is no place that can be reached: {reason}") from None
    return filesystem, path


class Lake:
    """A root folder or URI. All paths given and taken are below it, with `/` between parts."""

    def __init__(self, root: str) -> None:
        """Raises LakeTrouble when it is no place that can be reached."""
        self.uri = public_address(root)
        """To be shown: without keys and options."""
        self.filesystem, self._root = filesystem_of(root)
        self._silence: tuple[float, str] | None = None  # until when, and what was said of it
        self.on_sent: Callable[[], None] = lambda: None
        """Called whenever more of a file has come to the store."""

    @property
    def is_local(self) -> bool:
        """Whether the lake is a folder of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def full_path(self, path: str) -> str:
        """The path as the lake's filesystem knows it."""
        return f"{self._root}/{path}"

    @contextmanager
    def create(self, path: str) -> Iterator[HashingWriter]:
        """Write a file, which appears under its name when the with-block ends well."""
        if not self.is_local:
            with self._asked("writing", path), tempfile.TemporaryFile() as whole:
                yield HashingWriter(whole)
                self._send(whole, path)
            failpoint("half-published")
            return
        target = Path(self.full_path(path))
        with named_errors("writing", path):
            target.parent.mkdir(parents=True, exist_ok=True)
            _delete_abandoned(target)
        partial = target.with_name(f"{target.name}.{os.getpid()}{_PARTIAL_SUFFIX}")
        try:
            with named_errors("writing", path):
                with partial.open("wb") as sink:
                    yield HashingWriter(sink)
                    sink.flush()
                    os.fsync(sink.fileno())
                partial.replace(target)
                _sync(target.parent)
            failpoint("half-published")
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _asked(self, doing: Doing, path: str) -> Iterator[None]:
        """Errors have their names; a store that was silent just now is not asked."""
        with named_errors(doing, path):
            if self._silence is not None and time.monotonic() < self._silence[0]:
                raise OSError(self._silence[1])
            try:
                yield
            except OSError as error:
                if is_silence(error):
                    self._silence = time.monotonic() + ASKED_AGAIN_S, str(error)
                raise

    def _send(self, whole: IO[bytes], path: str) -> None:
        whole.seek(0)
        try:
            with self.filesystem.open_output_stream(self.full_path(path)) as sink:
                while piece := whole.read(_SEND_BYTES):
                    sink.write(piece)
                    if whole.tell() % (_SEND_BYTES * _SENT_AT_ONCE) == 0:
                        sink.flush()
                        self.on_sent()
            self.on_sent()
        except BaseException as error:
            # A store that took not every part completes nothing. But who is interrupted leaves the
            # stream, which completes the object, cut off as it is.
            if not (isinstance(error, OSError) and is_of_a_store(error)):
                with suppress(OSError):
                    self.filesystem.delete_file(self.full_path(path))
            raise

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Read a file as a stream. Raises StagedFileDamaged when it is not there.

        LakeTrouble when it cannot be read for another reason.
        """
        at_once = None if self.is_local else _ASK_BYTES
        return self._opened(
            path, lambda place: self.filesystem.open_input_stream(place, buffer_size=at_once)
        )

    def open_file(self, path: str) -> AbstractContextManager[pa.NativeFile]:
        """Read a file here and there. Raises as `open` does."""
        return self._opened(path, lambda place: self.filesystem.open_input_file(place))

    @contextmanager
    def _opened(self, path: str, opening: Callable[[str], Any]) -> Iterator[Any]:
        with self._asked("reading", path):
            try:
                file = opening(self.full_path(path))
            except FileNotFoundError as error:
                self._check_bucket()
                raise self._missing(path) from error
            with file:
                yield file

    def delete(self, path: str) -> None:
        """Remove a file, if it is there, and what a writer of it that was killed left behind."""
        with self._asked("deleting", path):
            try:
                self.filesystem.delete_file(self.full_path(path))
            except FileNotFoundError:
                self._check_bucket()
            if self.is_local:
                _delete_abandoned(Path(self.full_path(path)))

    def _missing(self, path: str) -> StagedFileDamaged:
        return StagedFileDamaged(f"{path} is not in the lake {self.uri}")

    def _check_bucket(self) -> None:
        """Raise LakeTrouble where no file can be: of a bucket that is not there a store says no
        more than of a file.
        """
        root = self._root.partition("/")[0]
        if not self.is_local and self.filesystem.get_file_info(root).type == fs.FileType.NotFound:
            raise LakeTrouble(f"there is no bucket {root}: see TIDEMARK_LAKE_URI and the endpoint")

    def there(self, paths: Iterable[str]) -> set[str]:
        """Those of many files that are there, or of which a writer that was killed left something.

        Asked folder by folder, which is much less than to ask for each. Where a folder cannot be
        listed, all of its files may be there.
        """
        wanted, found = set(paths), set()
        for folder in {path.rpartition("/")[0] for path in wanted}:
            listing = fs.FileSelector(self.full_path(folder), allow_not_found=True)
            try:
                names = [info.base_name for info in self.filesystem.get_file_info(listing)]
            except OSError:
                found |= {path for path in wanted if path.rpartition("/")[0] == folder}
                continue
            for name in names:
                if name.endswith(_PARTIAL_SUFFIX):
                    name = name.removesuffix(_PARTIAL_SUFFIX).rpartition(".")[0]
                found.add(f"{folder}/{name}")
        return wanted & found

    def copy(self, path: str, to: str) -> None:
        """Let a file stand under another name as well; what stood there before is replaced.

        Raises StagedFileDamaged when it is not there.
        """
        with self._asked("writing", to):
            try:
                if self.is_local:
                    self._link(Path(self.full_path(path)), Path(self.full_path(to)))
                else:
                    self.filesystem.copy_file(self.full_path(path), self.full_path(to))
            except OSError as error:
                if not is_missing(error):
                    raise
                self._check_bucket()
                raise self._missing(path) from error

    def _link(self, path: Path, to: Path) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = to.with_name(f"{to.name}.{os.getpid()}{_PARTIAL_SUFFIX}")
        partial.unlink(missing_ok=True)
        try:
            try:
                partial.hardlink_to(path)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without hard links
                shutil.copyfile(path, partial)
                _sync(partial)
            partial.replace(to)
        finally:
            partial.unlink(missing_ok=True)  # also where both were one file: then it is still there
        _sync(to.parent)

    def check(self, path: str, size: int, sha256: str) -> None:
        """Raise StagedFileDamaged unless the file is byte for byte what was registered."""
        found = hashlib.sha256()
        length = 0
        with self.open(path) as stream:
            while block := stream.read(_HASH_CHUNK_BYTES):
                found.update(block)
                length += len(block)
        if length != size or found.hexdigest() != sha256:
            raise StagedFileDamaged(
                f"{path} in the lake {self.uri} is not what was staged: {length:,} bytes with "
                f"SHA-256 {found.hexdigest()[:12]}…, registered were {size:,} with {sha256[:12]}…"
            )


def lake_path(kind: str, arrival_date: date, name: str) -> str:
    """Where a file of that kind and arrival date lies, below the lake's root."""
    return f"{kind}/arrival_date={arrival_date.isoformat()}/{name}"


@contextmanager
def named_errors(doing: Doing, path: str) -> Iterator[None]:
    """What the lake's filesystem raises, as errors of a batch: without room nothing is written,
    while one file that cannot be read says nothing of others."""
    try:
        yield
    except OSError as error:
        kind = LakeTrouble if doing == "reading" else TransientError
        raise kind(f"{doing} {path} in the lake failed: {told(error)}") from error


def _delete_abandoned(target: Path) -> None:
    for abandoned in target.parent.glob(f"{target.name}.*{_PARTIAL_SUFFIX}"):
        abandoned.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """A file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
