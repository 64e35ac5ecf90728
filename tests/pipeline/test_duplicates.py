"""The duplicate index: what is a duplicate of what, whatever was merged or staged twice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from assets.pipeline import key_files
from assets.pipeline.duplicates import Found, SeenKeys, key_columns
from assets.pipeline.errors import LakeTrouble
from assets.pipeline.key_files import (
    MOST_FILES,
    KeyFileUnreadable,
    Keys,
    files_to_merge,
    merge_key_files,
    open_key_file,
    write_key_file,
)

LOCAL = fs.LocalFileSystem()

Key = tuple[int, int]
Record = tuple[Key, int, int]  # key, partition, offset
First = tuple[str, int, int]  # batch, partition, offset


def arrays(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `mark`."""
    return (
        np.array([h1 for (h1, _), _, _ in records], np.uint64),
        np.array([h2 for (_, h2), _, _ in records], np.uint64),
        np.array([partition for _, partition, _ in records], np.int32),
        np.array([offset for _, _, offset in records], np.int64),
    )


def told(found: Found) -> list[tuple[int, First]]:
    """Row and first record of each duplicate."""
    firsts = zip(
        found.batch_id.to_pylist(), found.partition.tolist(), found.offset.tolist(), strict=True
    )
    return list(zip(found.rows.tolist(), firsts, strict=True))


def keys_of(uuids: Sequence[UUID], projects: Sequence[int]) -> list[Key]:
    """The keys of these events."""
    raw = np.frombuffer(b"".join(each.bytes for each in uuids), np.uint8).reshape(-1, 16)
    h1, h2 = key_columns(raw, np.array(projects, np.uint32))
    return list(zip(h1.tolist(), h2.tolist(), strict=True))


def write_batch(path: Path, batch_id: str, records: Sequence[Record]) -> str:
    """A key file with these records as if a batch had marked them."""
    seen = SeenKeys(LOCAL, [], batch_id)
    seen.mark(*arrays(records))
    write_key_file(LOCAL, str(path), seen.added())
    return str(path)


# Few values, so that equal keys and unequal ones with the same h1 are met all the time; far
# apart, so that a merge has slices of every size.
some_key = st.tuples(
    st.sampled_from([0, 1, 1 << 62, 1 << 63, (1 << 64) - 1]),
    st.sampled_from([0, 1, 2, (1 << 64) - 1]),
)
some_batch = st.tuples(
    st.lists(st.lists(some_key, max_size=8), max_size=4),  # chunks of keys
    st.sampled_from(["once", "lost", "again"]),
    st.randoms(use_true_random=False),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(some_batch, max_size=8), st.integers(1, 6))
def test_it_agrees_with_a_dictionary(
    batches: list[tuple[list[list[Key]], str, random.Random]], segment_rows: int
) -> None:
    """Over batches, chunks, crashes, second stagings and merges it says what a dict says."""
    first: dict[Key, First] = {}
    paths: list[str] = []
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_files, "SEGMENT_ROWS", segment_rows)
        for number, (chunks, fate, chance) in enumerate(batches):
            batch_id = f"batch-{number}"
            offsets = iter(range(number * 1000, number * 1000 + 1000))
            rows = [[(key, number % 3, next(offsets)) for key in keys] for keys in chunks]

            expected: list[list[tuple[int, First]]] = []
            for chunk in rows:
                expected.append([])
                for row, (key, partition, offset) in enumerate(chunk):
                    if key in first:
                        expected[-1].append((row, first[key]))
                    else:
                        first[key] = (batch_id, partition, offset)

            path = f"{folder}/{batch_id}"
            for turn in range(1 if fate == "once" else 2):
                seen = SeenKeys(LOCAL, paths, batch_id)
                assert [told(seen.mark(*arrays(chunk))) for chunk in rows] == expected
                if turn == 0 and fate == "lost":
                    continue  # a crash before the file was written
                write_key_file(LOCAL, path, seen.added())
                if path not in paths:
                    paths.append(path)
            if len(paths) > 1 and chance.random() < 0.5:
                some = sorted(chance.sample(range(len(paths)), chance.randint(1, len(paths))))
                target = f"{folder}/merged-{number}"
                merge_key_files(LOCAL, [paths[at] for at in some], target)
                paths = [path for at, path in enumerate(paths) if at not in some] + [target]

        everything = [(key, 0, 0) for key in first]
        seen = SeenKeys(LOCAL, paths, "another")
        assert told(seen.find(*arrays(everything)[:2])) == list(enumerate(first.values()))
        assert sum(len(keys) for path in paths for keys in open_key_file(LOCAL, path)) == len(first)


def test_many_probes_and_few_keys_or_the_reverse(tmp_path: Path) -> None:
    """Hits are exact whichever side is longer, with hundreds of keys to one h1 on both."""
    chance = np.random.default_rng(7)
    keys = [(int(h1), int(h2)) for h1, h2 in chance.integers(0, [30, 400], (3000, 2))]
    for held, asked in ((2500, 300), (300, 2500), (1, 2500), (2500, 1)):
        records = [(key, 0, at) for at, key in enumerate(keys[:held])]
        path = write_batch(tmp_path / f"{held}-{asked}", "old", records)
        known: dict[Key, int] = {}
        for key, _, offset in records:
            known.setdefault(key, offset)
        probes = [(key, 1, at) for at, key in enumerate(keys[-asked:])]
        found = SeenKeys(LOCAL, [path], "new").find(*arrays(probes)[:2])
        assert told(found) == [
            (row, ("old", 0, known[key])) for row, (key, _, _) in enumerate(probes) if key in known
        ]
        assert np.flatnonzero(found.mask(asked)).tolist() == found.rows.tolist()


def test_the_first_of_a_chunk_is_the_original() -> None:
    """Within one chunk later rows of a key are duplicates of the first; find adds nothing."""
    seen = SeenKeys(LOCAL, [], "b")
    chunk = arrays([((5, 5), 0, 10), ((5, 6), 1, 11), ((5, 5), 2, 9), ((5, 5), 0, 12)])
    assert told(seen.find(*chunk[:2])) == []
    assert told(seen.mark(*chunk)) == [(2, ("b", 0, 10)), (3, ("b", 0, 10))]
    again = [("b", 0, 10), ("b", 1, 11), ("b", 0, 10), ("b", 0, 10)]
    assert told(seen.find(*chunk[:2])) == list(enumerate(again))


def test_a_hit_behind_the_batch_itself_still_counts(tmp_path: Path) -> None:
    """Of one key held for this batch and for another, the other one's record is the first."""
    paths = [
        write_batch(tmp_path / batch, batch, [((1, 1), 0, at), ((1, 2), 0, at + 50)])
        for at, batch in enumerate(["mine", "replaced", "other"])
    ]
    merge_key_files(LOCAL, paths, str(tmp_path / "merged"))
    probe = arrays([((1, 1), 0, 0), ((1, 2), 0, 50)])
    for files in (paths, [str(tmp_path / "merged")]):
        seen = SeenKeys(LOCAL, files, "mine", replaced=["replaced"])
        assert told(seen.mark(*probe)) == [(0, ("other", 0, 2)), (1, ("other", 0, 52))]


def test_of_two_firsts_the_older_file_has_it(tmp_path: Path) -> None:
    """When two files hold one key, the file given first names the first record."""
    paths = [write_batch(tmp_path / name, name, [((1, 1), 0, 0)]) for name in ("a", "b")]
    for files in (paths, paths[::-1]):
        target = str(tmp_path / "merged")
        merge_key_files(LOCAL, files, target)
        for held in (files, [target]):
            found = SeenKeys(LOCAL, held, "c").find(*arrays([((1, 1), 0, 0)])[:2])
            assert found.batch_id.to_pylist() == [Path(files[0]).name]


def test_batches_that_are_replaced_do_not_count(tmp_path: Path) -> None:
    """A rebuild names the batches it replaces, and finds its records new."""
    path = write_batch(tmp_path / "old", "old", [((1, 1), 0, 0)])
    seen = SeenKeys(LOCAL, [path], "rebuilt", replaced=["old"])
    assert told(seen.mark(*arrays([((1, 1), 0, 0)]))) == []
    assert len(seen.added()) == 1


def test_the_file_does_not_depend_on_chunks(tmp_path: Path) -> None:
    """However the batch's rows are cut, and however often, its key file has the same bytes."""
    chance = np.random.default_rng(3)
    keys = chance.integers(0, 1 << 64, (500, 2), np.uint64)
    records = [((int(a), int(b)), 0, at) for at, (a, b) in enumerate(keys)] * 2
    written = set()
    for size in (1, 7, 100, 1000):
        seen = SeenKeys(LOCAL, [], "b")
        for start in range(0, len(records), size):
            seen.mark(*arrays(records[start : start + size]))
        assert write_key_file(LOCAL, str(tmp_path / "k"), seen.added()) == 500
        written.add((tmp_path / "k").read_bytes())
    assert len(written) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["k"]


def test_an_empty_batch_has_a_file_too(tmp_path: Path) -> None:
    """A batch without a new key writes a file that is read, searched and merged like others."""
    seen = SeenKeys(LOCAL, [], "b")
    assert told(seen.mark(*arrays([]))) == []
    path, target = str(tmp_path / "none"), str(tmp_path / "merged")
    assert write_key_file(LOCAL, path, seen.added()) == 0
    assert merge_key_files(LOCAL, [path, path], target) == 0
    again = SeenKeys(LOCAL, [path, target], "c")
    assert told(again.mark(*arrays([((1, 1), 0, 0)]))) == []


def test_other_file_systems() -> None:
    """On an object store files are written, read and merged the same."""
    store = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory")))
    for batch, h2 in (("a", 1), ("b", 2)):
        seen = SeenKeys(store, [], batch)
        seen.mark(*arrays([((9, h2), 0, h2)]))
        write_key_file(store, f"keys-{batch}", seen.added())
    assert merge_key_files(store, ["keys-a", "keys-b"], "keys-merged") == 2
    found = SeenKeys(store, ["keys-merged"], "c").find(*arrays([((9, 2), 0, 0)])[:2])
    assert told(found) == [(0, ("b", 0, 2))]


def test_a_folder_as_file_system(tmp_path: Path) -> None:
    """A lake that is a folder of the local file system gets its folders made."""
    lake = fs.SubTreeFileSystem(str(tmp_path), LOCAL)
    seen = SeenKeys(lake, [], "b")
    seen.mark(*arrays([((1, 1), 0, 0)]))
    write_key_file(lake, "keys/2026-01-01/b.arrow", seen.added())
    assert (tmp_path / "keys/2026-01-01/b.arrow").is_file()
    assert len(
        SeenKeys(lake, ["keys/2026-01-01/b.arrow"], "c").find(*arrays([((1, 1), 0, 0)])[:2]).rows
    )


@pytest.mark.parametrize("damage", ["absent", "cut", "other columns"])
def test_an_unreadable_file_is_named(tmp_path: Path, damage: str) -> None:
    """A missing, truncated or foreign key file is one clear error that names it."""
    path = tmp_path / "k"
    if damage == "cut":
        write_batch(path, "b", [((1, 1), 0, 0)])
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other columns":
        with pa.ipc.new_file(str(path), pa.schema([("h1", pa.uint64())])):
            pass
    with pytest.raises(KeyFileUnreadable, match=r"key file .*k cannot be read"):
        SeenKeys(LOCAL, [str(path)], "b")


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_store_that_goes_away_between_two_tries_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    """Also at the last of them: the index is not made anew because a store is away."""
    short, away = (
        OSError("short read"),
        OSError("AWS Error NETWORK_CONNECTION during GetObject operation: none"),
    )
    raised = iter([*[short] * good, away])

    def fail(*_: object) -> list[Keys]:
        raise next(raised)

    monkeypatch.setattr(key_files, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(key_files, "_open_key_file", fail)
    with pytest.raises(LakeTrouble, match="the store does not answer") as told:
        open_key_file(LOCAL, str(tmp_path / "k"))
    assert not isinstance(told.value, KeyFileUnreadable)


def test_a_failed_merge_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a merge breaks off, neither its target nor a part of it stays behind."""
    monkeypatch.setattr(key_files, "SEGMENT_ROWS", 1)
    paths = [
        write_batch(tmp_path / name, name, [((h1, 1), 0, 0)])
        for name, h1 in (("a", 1), ("b", 1 << 63))
    ]
    joined = key_files.joined
    slices = []

    def breaks_off(parts: Sequence[Keys]) -> Keys:
        slices.append(parts)
        if len(slices) == 2:
            raise MemoryError
        return joined(parts)

    monkeypatch.setattr(key_files, "joined", breaks_off)
    with pytest.raises(MemoryError):
        merge_key_files(LOCAL, paths, str(tmp_path / "merged"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


uuids = st.one_of(st.uuids(), st.integers(0, 3).map(lambda low: UUID(int=low)))


@settings(deadline=None)
@given(st.lists(st.tuples(uuids, st.integers(0, 3)), min_size=1, max_size=30))
def test_keys_are_equal_when_uuid_and_project_are(events: list[tuple[UUID, int]]) -> None:
    """Two events share a key if, and only if, both uuid and project are the same."""
    keys = keys_of([uuid for uuid, _ in events], [project for _, project in events])
    assert len(set(keys)) == len(set(events))
    assert dict(zip(events, keys, strict=True)) == dict(
        zip(reversed(events), reversed(keys), strict=True)
    )


def test_keys_are_those_of_the_files_already_written() -> None:
    """The mix is part of the key files' format: these values never change."""
    assert keys_of(
        [UUID("018f0000-0000-7000-8000-000000000001"), UUID(int=0)], [1, 4294967295]
    ) == [
        (14115541090087191017, 13265295149360000357),
        (13092056888865101792, 15179518232072543999),
    ]


def test_keys_of_uuids_that_begin_with_the_time_are_spread() -> None:
    """Time-ordered uuids fill h1's range evenly: every sixteenth has about its share."""
    events = [UUID(int=(0x018F << 112) | at << 64 | 0x8 << 60 | at) for at in range(16_000)]
    h1 = np.array([key[0] for key in keys_of(events, [7] * len(events))], np.uint64)
    share = np.bincount((h1 >> np.uint64(60)).astype(np.int64), minlength=16)
    assert share.min() > 850
    assert share.max() < 1150


@pytest.mark.parametrize(
    "rows",
    [
        [100] * 17_000,
        [17_000 - at for at in range(17_000)],
        [int(10 ** random.Random(at).uniform(0, 5.7)) for at in range(17_000)],
        [3 ** (at % 11) for at in range(17_000)],
    ],
    ids=["even", "shrinking", "scattered", "powers"],
)
def test_a_day_of_micro_batches_stays_few_files(rows: list[int]) -> None:
    """17,000 batches keep at most 20 files; a key is rewritten 8 times on average, 30 at most."""
    files: dict[str, tuple[int, int]] = {}  # rows, and how often the oldest key was rewritten
    rewritten = 0
    for number, size in enumerate(rows):
        files[f"b{number}"] = (size, 0)
        chosen = files_to_merge([(path, held) for path, (held, _) in files.items()])
        if chosen:
            assert len(chosen) > 1
            parts = [files.pop(path) for path in chosen]
            total = sum(held for held, _ in parts)
            rewritten += total
            files[f"m{number}"] = (total, 1 + max(times for _, times in parts))
        assert len(files) <= 20
    assert rewritten <= 8 * sum(rows)
    assert max(times for _, times in files.values()) <= 30


def test_few_files_are_left_alone() -> None:
    """Up to the limit nothing is merged, and what is named comes in the order given."""
    assert files_to_merge([]) == []
    assert files_to_merge([(str(at), 1) for at in range(MOST_FILES)]) == []
    assert files_to_merge([("big", 1000), *((str(at), 1) for at in range(MOST_FILES))]) == [
        str(at) for at in range(MOST_FILES)
    ]
