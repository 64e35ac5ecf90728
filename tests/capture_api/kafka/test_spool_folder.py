"""A folder of the spool: what is on disk after a crash, a full disk, or damage, and whose it is."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capture_api.events.records import Record
from capture_api.kafka.spool_folder import (
    Position,
    SpoolFolder,
    claim,
    claim_orphans,
    claim_own,
)

SEGMENT = 1 << 20


def request(number: int, size: int = 100) -> list[Record]:
    """One request of two records."""
    return [
        ("events", f"{number}-{part} ".encode() + b"x" * size, b"t:d" if part else None)
        for part in range(2)
    ]


def add(folder: SpoolFolder, *requests: list[Record]) -> None:
    """Append as the event loop does: what was synced counts."""
    end = folder.append(requests, 1.0)
    folder.sizes[end.segment] = end.offset


def drain(folder: SpoolFolder) -> list[Record]:
    """Everything that is in it from the position on; marks nothing."""
    records: list[Record] = []
    position = folder.position
    while (chunk := folder.read(position, dict(folder.sizes))) is not None:
        records += chunk.records
        position = chunk.end
    return records


def crash_and_claim(folder: SpoolFolder) -> SpoolFolder:
    """The owner is gone without a word; somebody else comes."""
    os.close(folder._lock)
    found = claim(folder.path, SEGMENT)
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    """A new folder."""
    return claim_own(tmp_path / "spool", SEGMENT)


def test_everything_appended_is_there_after_a_crash(folder: SpoolFolder) -> None:
    """In order, over several segments, keys and topics included."""
    requests = [request(number, 100_000) for number in range(30)]
    for one in requests:
        add(folder, one)
    assert len(folder.sizes) > 1
    found = crash_and_claim(folder)
    assert drain(found) == [record for one in requests for record in one]
    assert found.records == 60


@pytest.mark.parametrize("cut", [1, 5, 12, 13, 100])
def test_torn_tail_is_cut(folder: SpoolFolder, cut: int) -> None:
    """The last request was being written: what is whole before it stays, and new ones follow."""
    add(folder, request(1), request(2))
    whole = folder.sizes[1]
    add(folder, request(3))
    path = folder.path / "00000001.segment"
    os.truncate(path, whole + cut)
    found = crash_and_claim(folder)
    assert drain(found) == request(1) + request(2)
    assert path.stat().st_size == whole
    add(found, request(4))
    assert drain(found) == request(1) + request(2) + request(4)


@pytest.mark.parametrize("tail", [bytes(4096), b"\xff" * 50, b"TMSPOOL1" * 9])
def test_garbage_at_the_end_is_cut(folder: SpoolFolder, tail: bytes) -> None:
    """A power cut may leave zeros or anything where nothing was synced."""
    add(folder, request(1))
    with (folder.path / "00000001.segment").open("ab") as file:
        file.write(tail)
    assert drain(crash_and_claim(folder)) == request(1)


def test_damage_before_the_end_is_kept_for_a_person(folder: SpoolFolder) -> None:
    """A segment that others follow was whole once: it is not thrown away."""
    for number in range(30):
        add(folder, request(number, 100_000))
    path = folder.path / "00000001.segment"
    data = bytearray(path.read_bytes())
    data[300_000] ^= 1
    path.write_bytes(data)
    found = crash_and_claim(folder)
    later = drain(found)
    assert request(0, 100_000)[0] in later
    assert later[-1] == request(29, 100_000)[1]
    found.mark(Position(2, 0), [1])
    assert path.with_suffix(".damaged").read_bytes() == data
    assert not path.exists()


def test_position_survives_a_crash(folder: SpoolFolder) -> None:
    """What was marked is not read again; what was not is."""
    for number in range(30):
        add(folder, request(number, 100_000))
    chunk = folder.read(folder.position, dict(folder.sizes))
    assert chunk is not None
    folder.mark(chunk.end, [])
    everything = drain(folder)
    found = crash_and_claim(folder)
    assert found.position == chunk.end
    assert drain(found) == everything[len(chunk.records) :]
    assert found.records == 60 - len(chunk.records)


@pytest.mark.parametrize("slot", [0, 1])
def test_torn_position_falls_back_to_the_one_before(folder: SpoolFolder, slot: int) -> None:
    """A mark that was only partly written costs no more than sending again."""
    add(folder, request(1), request(2), request(3))
    ends = [Position(1, 100), Position(1, 200), Position(1, 300)][: 2 + slot]
    for end in ends:
        folder.mark(end, [])
    last = (len(ends) - 1) % 2
    with (folder.path / "position").open("r+b") as file:
        file.seek(last * 28 + 20)
        file.write(b"\xff")
    found = crash_and_claim(folder)
    assert found.position == ends[-2]


def test_segments_behind_the_position_are_removed(folder: SpoolFolder) -> None:
    """Also when the process died between marking and removing."""
    for number in range(30):
        add(folder, request(number, 100_000))
    last = max(folder.sizes)
    folder.mark(Position(last, 0), [])
    assert (folder.path / "00000001.segment").exists()
    found = crash_and_claim(folder)
    assert list(found.sizes) == [last]
    assert not (folder.path / "00000001.segment").exists()


def test_cleared_folder_takes_new_records_only(folder: SpoolFolder) -> None:
    """After the spool ran empty nothing of before is read again, whenever the crash comes."""
    add(folder, request(1))
    folder.position = Position(2, 0)
    folder.sizes.clear()
    folder.clear(folder.position, [1])
    assert not list(folder.path.glob("*.segment"))
    add(folder, request(2))
    assert drain(folder) == request(2)
    assert drain(crash_and_claim(folder)) == request(2)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Writes beyond that size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_what_was_taken(folder: SpoolFolder) -> None:
    """A write that fails halfway is undone; before and after it everything is there."""
    add(folder, request(1))
    with files_end_at(10_000), pytest.raises(OSError, match="File too large"):
        folder.append([request(2, 50_000)], 1.0)
    with files_end_at(100), pytest.raises(OSError, match="File too large"):
        folder.append([request(3)], 1.0)
    with files_end_at(4), pytest.raises(OSError, match="File too large"):
        folder.append([request(4)], 1.0)
    assert drain(folder) == request(1)
    add(folder, request(5))
    assert drain(folder) == request(1) + request(5)
    found = crash_and_claim(folder)
    assert drain(found) == request(1) + request(5)


def test_position_is_marked_on_a_full_disk(folder: SpoolFolder) -> None:
    """Marking needs no space, so that a full disk can be drained."""
    add(folder, request(1))
    with files_end_at(folder.sizes[1] + 1):
        folder.mark(Position(1, 50), [])
    assert crash_and_claim(folder).position == Position(1, 50)


def test_folder_has_one_owner(tmp_path: Path) -> None:
    """Two workers have two folders; that of a dead one goes to whoever comes first, once."""
    root = tmp_path / "spool"
    one, two = claim_own(root, SEGMENT), claim_own(root, SEGMENT)
    assert one.path != two.path
    assert claim_orphans(root, SEGMENT) == []
    add(one, request(1))
    os.close(one._lock)
    [adopted] = claim_orphans(root, SEGMENT)
    assert adopted.path == one.path
    assert drain(adopted) == request(1)
    assert claim_orphans(root, SEGMENT) == []
    assert claim_own(root, SEGMENT).path not in (one.path, two.path)
    adopted.remove()
    assert not one.path.exists()


def test_what_kafka_never_takes_outlives_its_folder(folder: SpoolFolder) -> None:
    """Records set aside are kept when everything else is drained."""
    folder.set_aside(request(1), 1.0)
    folder.remove()
    assert not folder.path.exists(), "nobody adopts it again"
    kept = folder.path.with_name(f"kept-{folder.path.name}")
    assert {path.name for path in kept.iterdir()} == {"lock", "position", "refused.segment"}
    again = folder.path.with_name("worker-again")
    again.mkdir()
    (kept / "refused.segment").rename(again / "00000001.segment")
    [found] = claim_orphans(again.parent, SEGMENT)
    assert drain(found) == request(1)


def test_damage_inside_the_newest_segment_costs_one_request(folder: SpoolFolder) -> None:
    """Whole requests behind the damage are read, and the segment is kept for a person."""
    for number in range(10):
        add(folder, request(number))
    path = folder.path / "00000001.segment"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = crash_and_claim(folder)
    assert len(drain(found)) == 18
    assert path.read_bytes() == data
    found.mark(Position(2, 0), [1])
    assert path.with_suffix(".damaged").read_bytes() == data


def test_a_folder_that_cannot_be_used_stops_no_other(folder: SpoolFolder) -> None:
    """A start goes on with a folder of its own, and orphans beside the bad one are adopted."""
    root = folder.path.parent
    bad = root / "worker-000"
    (bad / "00000001.segment").mkdir(parents=True)
    add(folder, request(1))
    os.close(folder._lock)
    own = claim_own(root, SEGMENT)
    assert own.path == folder.path
    os.close(own._lock)
    assert [found.path for found in claim_orphans(root, SEGMENT)] == [folder.path]


def test_appends_that_fail_leave_no_segments(folder: SpoolFolder) -> None:
    """A disk that has room for a name only does not fill up with empty files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for _ in range(5):
            with pytest.raises(OSError, match="large"):
                folder.append([request(1, 10_000)], 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(folder.path.glob("*.segment")) == []


def test_unusable_folder_is_an_error(tmp_path: Path, settings: Callable[..., object]) -> None:
    """A path that is no folder is told, not ignored."""
    (tmp_path / "spool").write_text("")
    with pytest.raises(OSError, match="spool"):
        claim_own(tmp_path / "spool", SEGMENT)
