"""Copies of key files of a lake that is not on this machine: whole, few, and gone in the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from pyarrow import fs

from assets.pipeline.duplicates import SeenKeys
from assets.pipeline.errors import KeyFileUnreadable
from assets.pipeline.key_copies import KeyCopies, NoCopies
from assets.pipeline.key_files import open_key_file, write_key_file
from assets.pipeline.lake import Lake
from orchestration.settings import Settings
from tests.stack import cannot_be_read

ONE, TWO = "keys/arrival_date=2026-03-05/one.arrow", "keys/arrival_date=2026-03-06/two.arrow"


@pytest.fixture
def far(tmp_path: Path) -> Lake:
    """A lake that is no folder of this machine, as far as Arrow knows, with two key files."""
    here = Lake(str(tmp_path / "lake"))
    for path, first in ((ONE, 1), (TWO, 2)):
        seen = SeenKeys(here.filesystem, [], path)
        keys = np.arange(first, 1_000, dtype=np.uint64)
        seen.mark(keys, keys, np.zeros(len(keys), np.int32), np.arange(len(keys)))
        write_key_file(here.filesystem, here.full_path(path), seen.added())
    lake = Lake(str(tmp_path / "lake"))
    lake.filesystem = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("file")))
    assert not lake.is_local
    return lake


@pytest.fixture
def copies(settings: Callable[..., Settings]) -> KeyCopies:
    """Those of a run."""
    return KeyCopies(settings(lake_min_free_bytes=0))


def in_the(folder: str | Path | None) -> set[str]:
    """The files there."""
    assert folder is not None
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found}


def test_a_lake_on_this_machine_needs_none(copies: KeyCopies, tmp_path: Path) -> None:
    """Its own files are mapped."""
    with copies:
        assert copies.folder_with(Lake(str(tmp_path)), [ONE]) is None


def test_each_file_is_copied_once(copies: KeyCopies, far: Lake) -> None:
    """Byte for byte; who asks for it again is given what is there."""
    whole = Path(far.full_path(ONE)).read_bytes()
    with copies:
        folder = copies.folder_with(far, [ONE])
        assert folder is not None
        assert (Path(folder) / ONE).read_bytes() == whole
        far.delete(ONE)
        assert copies.folder_with(far, [ONE, TWO]) == folder
        assert in_the(folder) == {ONE, TWO}
    assert not Path(folder).exists()


def test_what_is_not_needed_goes(copies: KeyCopies, far: Lake) -> None:
    """Who has it open keeps it; and it is copied again when it is needed again."""
    with copies:
        folder = copies.folder_with(far, [ONE, TWO])
        assert folder is not None
        (keys,) = open_key_file(fs.LocalFileSystem(), f"{folder}/{ONE}")
        copies.keep_only([TWO])
        assert in_the(folder) == {TWO}
        assert keys.h1.tolist() == list(range(1, 1_000))
        copies.folder_with(far, [ONE])
        assert in_the(folder) == {ONE, TWO}


@pytest.mark.parametrize("harm", [Path.unlink, cannot_be_read])
def test_a_key_file_that_cannot_be_read(
    copies: KeyCopies, far: Lake, harm: Callable[[Path], object]
) -> None:
    """Is told as such, and nothing stands in its place."""
    harm(Path(far.full_path(TWO)))
    with copies:
        with pytest.raises(KeyFileUnreadable, match=TWO):
            copies.folder_with(far, [ONE, TWO])
        assert in_the(copies.folder_with(far, [ONE])) == {ONE}


def test_without_room_there_are_no_copies(settings: Callable[..., Settings], far: Lake) -> None:
    """What is to stay free on the lake's disk, where it has one, stays free here."""
    with KeyCopies(settings(lake_min_free_bytes=1 << 60)) as copies:
        with pytest.raises(NoCopies, match="TIDEMARK_LAKE_MIN_FREE_BYTES"):
            copies.folder_with(far, [ONE])


def test_without_room_what_is_there_does(
    copies: KeyCopies, far: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who needs no more is refused nothing."""
    with copies:
        folder = copies.folder_with(far, [ONE])
        monkeypatch.setattr(copies, "_keep_free_bytes", 1 << 60)
        assert copies.folder_with(far, []) == copies.folder_with(far, [ONE]) == folder


def test_where_nothing_can_be_written_there_are_no_copies(copies: KeyCopies, far: Lake) -> None:
    """As on a disk that is full, or may not be written to."""
    with copies:
        folder = copies.folder_with(far, [])
        assert folder is not None
        (Path(folder) / "keys").write_text("in the way")
        with pytest.raises(NoCopies, match="could not be copied"):
            copies.folder_with(far, [ONE])


def test_other_topics_have_their_own(settings: Callable[..., Settings], far: Lake) -> None:
    """Their runs have other leases: both are at work at once."""
    with KeyCopies(settings(lake_min_free_bytes=0, topic="one")) as one:
        folder = one.folder_with(far, [ONE])
        with KeyCopies(settings(lake_min_free_bytes=0, topic="two")) as two:
            assert in_the(two.folder_with(far, [TWO])) == {TWO}
            assert in_the(folder) == {ONE}


def test_what_a_crash_left_is_gone_with_the_next_run(
    settings: Callable[..., Settings], far: Lake
) -> None:
    """And if that run was only asleep, it takes nothing from its successor when it ends."""
    asleep, successor = (KeyCopies(settings(lake_min_free_bytes=0)) for _ in range(2))
    with asleep:
        left = asleep.folder_with(far, [ONE])
        assert left is not None
        with successor:
            assert not Path(left).exists()
            folder = successor.folder_with(far, [ONE, TWO])
            asleep.keep_only([])
            asleep.__exit__(None, None, None)
            assert in_the(folder) == {ONE, TWO}
