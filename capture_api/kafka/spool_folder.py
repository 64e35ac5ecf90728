"""One folder of the spool: segments, a position, and a lock that says whose it is.

    <capture_spool_dir>/worker-<name>/
        lock               held (flock) by the process that owns the folder; free when it is dead
        00000001.segment   SEGMENT_MAGIC, then frames; only ever appended to
        position           two slots, written in turn: up to here Kafka has acknowledged
        00000001.damaged   a segment that had unreadable bytes before its end, kept for a person

Everything here blocks. `append` and `clear` run on one thread (the writer's), `read` and `mark` on
one other; `sizes` and `position` are the event loop's, which hands them in. Invariants: what
`append` returned is on the disk; what `sizes` covers is; the position never passes what Kafka has.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from capture_api.events.records import Record
from capture_api.kafka.spool_frames import (
    HEAD,
    SEGMENT_MAGIC,
    decode_frames,
    encode_frame,
    frame_length,
    walk,
)

CHUNK_BYTES = 2 << 20
"""What is read, and sent to Kafka, at once; more only where one request is larger."""
FIRST_FRAME = len(SEGMENT_MAGIC)
_SLOT = struct.Struct("<QQQI")  # number of the mark, segment, offset, CRC-32 of those

log = logging.getLogger("tidemark.capture.spool")


@dataclass(frozen=True, order=True)
class Position:
    """A place in a folder."""

    segment: int
    offset: int


@dataclass(frozen=True)
class Chunk:
    """What was read at once."""

    records: list[Record]
    written_at: float  # seconds since 1970, of the oldest
    end: Position


class SpoolFolder:
    """A folder whose lock this process holds."""

    def __init__(self, path: Path, lock: int, segment_bytes: int) -> None:
        self.path = path
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._segment = -1  # the writer's: descriptor, number and whole bytes of its segment
        self._written = 0
        self._marks = 0
        self._damaged: set[int] = set()
        self.records = 0
        self.sizes: dict[int, int] = {}
        self.position = self._read_position()
        self._find_segments()
        self._number = max(self.sizes, default=self.position.segment)
        self._positions = os.open(path / "position", os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(self._positions).st_size < 2 * _SLOT.size:
            os.pwrite(self._positions, bytes(2 * _SLOT.size), 0)  # so that marking needs no space
            os.fsync(self._positions)

    @property
    def bytes(self) -> int:
        """What its segments take on the disk."""
        return sum(self.sizes.values())

    def append(self, requests: Sequence[Sequence[Record]], now: float) -> Position:
        """Write the records of these requests and force them to the disk; where they end.

        Raises OSError, and then nothing of it counts.
        """
        data = b"".join([encode_frame(records, now) for records in requests])
        if self._segment < 0 or self._written + len(data) > self._segment_bytes:
            self._begin_segment()
        try:
            _write_all(self._segment, data)
            os.fdatasync(self._segment)
        except OSError:
            self._leave_segment()
            raise
        self._written += len(data)
        return Position(self._number, self._written)

    def read(self, start: Position, sizes: dict[int, int]) -> Chunk | None:
        """The next records from there on, as far as `sizes` go; None when there are none."""
        for number in sorted(sizes):
            if number < start.segment:
                continue
            offset = start.offset if number == start.segment else 0
            offset = max(offset, FIRST_FRAME)
            if offset < sizes[number]:
                return self._read_at(number, offset, sizes[number])
        return None

    def present(self) -> set[int]:
        """The numbers of the segments that there are."""
        return {int(p.stem) for p in self.path.glob("*.segment") if p.stem.isdigit()}

    def mark(self, position: Position, done: Iterable[int]) -> None:
        """Kafka has everything up to here: remember it, and remove the segments that are done."""
        done = list(done)
        # These first: after a crash, what lies before the mark is removed.
        for number in self._damaged.intersection(done):
            self._remove_segment(number)
        slot = self._marks % 2
        body = _SLOT.pack(self._marks + 1, position.segment, position.offset, 0)[:-4]
        os.pwrite(self._positions, body + struct.pack("<I", zlib.crc32(body)), slot * _SLOT.size)
        os.fdatasync(self._positions)
        self._marks += 1
        for number in done:
            self._remove_segment(number)

    def clear(self, position: Position, done: Iterable[int]) -> None:
        """Kafka has everything: begin a new segment with the next `append`."""
        self._leave_segment()
        self._number = max(self._number, position.segment - 1)
        self.mark(position, done)

    def set_aside(self, records: Sequence[Record], now: float) -> None:
        """Keep records that Kafka will never take where a person finds them."""
        file = os.open(self.path / "refused.segment", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        whole = os.fstat(file).st_size
        try:
            _write_all(file, (b"" if whole else SEGMENT_MAGIC) + encode_frame(records, now))
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, whole)
            raise
        finally:
            os.close(file)

    def remove(self) -> None:
        """Remove an emptied folder; one with something set aside or damaged is renamed and kept."""
        try:
            for number in self.sizes:
                self._remove_segment(number)
            if {path.name for path in self.path.iterdir()} <= {"lock", "position"}:
                for name in ("position", "lock"):
                    (self.path / name).unlink()
                self.path.rmdir()
            else:
                self.path.rename(self.path.with_name(f"kept-{self.path.name}"))
        finally:
            self.close()

    def give_up_segment(self, number: int) -> None:
        """Count it as damaged: it cannot be read at all, and is kept for a person."""
        self._damaged.add(number)

    def close(self) -> None:
        """Give the folder up, as the end of the process does."""
        self._leave_segment()
        os.close(self._positions)
        os.close(self._lock)

    def _begin_segment(self) -> None:
        self._leave_segment()
        number = self._number + 1
        path = self._path(number)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_all(file, SEGMENT_MAGIC)
            os.fsync(file)
            _sync_folder(self.path)
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._segment, self._number, self._written = file, number, FIRST_FRAME

    def _leave_segment(self) -> None:
        """Append to it no more. What lies behind the last whole write was never acknowledged."""
        file, self._segment = self._segment, -1
        if file < 0:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(file, self._written)
        os.close(file)
        if self._written <= FIRST_FRAME:
            self._path(self._number).unlink(missing_ok=True)

    def _read_at(self, number: int, offset: int, end: int) -> Chunk:
        file = os.open(self._path(number), os.O_RDONLY)
        try:
            data = os.pread(file, min(CHUNK_BYTES, end - offset), offset)
            length = _declared_length(data)
            if len(data) < length <= end - offset:
                data = os.pread(file, length, offset)
        finally:
            os.close(file)
        frames = decode_frames(data)
        if not frames.length:
            self._damaged.add(number)
            # Only what is inside a frame may be bad: then those behind it are read all the same.
            behind = offset + length if offset + length <= end else end
            log.error(
                "%s cannot be read from byte %d to %d: it is kept",
                self._path(number),
                offset,
                behind,
            )
            return Chunk([], 0.0, Position(number, behind))
        return Chunk(frames.records, frames.written_at, Position(number, offset + frames.length))

    def _find_segments(self) -> None:
        paths = {int(p.stem): p for p in self.path.glob("*.segment") if p.stem.isdigit()}
        for number, path in sorted(paths.items()):
            data = path.read_bytes() if number >= self.position.segment else b""
            if len(data) <= FIRST_FRAME:
                path.unlink()
                continue
            first = self.position.offset if number == self.position.segment else 0
            first = max(first, FIRST_FRAME)
            end, records = walk(data, first) if data.startswith(SEGMENT_MAGIC) else (0, 0)
            inside = end and end + _declared_length(data[end : end + HEAD.size]) <= len(data)
            if end < len(data) and inside:
                log.error("%s has unreadable bytes from %d on: it is kept", path, end)
                self._damaged.add(number)
                end = len(data)  # what lies behind them is read
            elif end < len(data) and number == max(paths) and end:
                log.warning(
                    "%s: cut off %d bytes after its last whole request, which were being written "
                    "when the process ended: never acknowledged",
                    path,
                    len(data) - end,
                )
                os.truncate(path, end)
            elif end < len(data):
                log.error("%s cannot be read from byte %d on: it is kept", path, end)
                self._damaged.add(number)
            self.records += records
            self.sizes[number] = max(end, FIRST_FRAME)

    def _remove_segment(self, number: int) -> None:
        path = self._path(number)
        if number in self._damaged:
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_suffix(".damaged"))
        else:
            path.unlink(missing_ok=True)

    def _read_position(self) -> Position:
        self._marks, position = read_position(self.path)
        return position

    def _path(self, number: int) -> Path:
        return self.path / f"{number:08}.segment"


def read_position(path: Path) -> tuple[int, Position]:
    """The number of a folder's last mark, and the position that it says."""
    try:
        data = (path / "position").read_bytes()
    except FileNotFoundError:
        return 0, Position(0, 0)
    best = (0, 0, 0)
    for offset in range(0, len(data) - _SLOT.size + 1, _SLOT.size):
        number, segment, place, checksum = _SLOT.unpack_from(data, offset)
        if zlib.crc32(data[offset : offset + _SLOT.size - 4]) == checksum:
            best = max(best, (number, segment, place))
    return best[0], Position(best[1], best[2])


def _declared_length(head: bytes) -> int:
    """What the frame at the beginning says that it takes; more than there can be without a head."""
    length = frame_length(head) if len(head) >= HEAD.size else 0
    return length if length > HEAD.size else 1 << 62  # zeros are what a power cut leaves


def _claim_or_tell(path: Path, segment_bytes: int) -> SpoolFolder | None:
    """The folder, if nobody owns it and it can be used: one bad folder must not stop the others."""
    try:
        return claim(path, segment_bytes)
    except OSError as error:
        if path not in _told:
            _told.add(path)
            log.error("the spool's folder %s cannot be used, and is left alone: %s", path, error)
        return None


_told: set[Path] = set()


def claim(path: Path, segment_bytes: int) -> SpoolFolder | None:
    """The folder, if nobody owns it. Raises OSError when it cannot be used."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return None  # removed in this moment by whoever emptied it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (path / "lock").stat().st_ino != os.fstat(lock).st_ino:
            raise FileNotFoundError
        return SpoolFolder(path, lock, segment_bytes)
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise


def claim_own(root: Path, segment_bytes: int) -> SpoolFolder:
    """A folder of one's own: one whose owner is dead, or a new one."""
    root.mkdir(parents=True, exist_ok=True)
    for path in sorted(root.glob("worker-*")):
        if (folder := _claim_or_tell(path, segment_bytes)) is not None:
            return folder
    path = root / f"worker-{uuid4().hex[:12]}"
    path.mkdir()
    _sync_folder(root)
    folder = claim(path, segment_bytes)
    return folder if folder is not None else claim_own(root, segment_bytes)


def claim_orphans(root: Path, segment_bytes: int) -> list[SpoolFolder]:
    """Every folder that nobody owns."""
    found = (_claim_or_tell(path, segment_bytes) for path in sorted(root.glob("worker-*")))
    return [folder for folder in found if folder is not None]


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
