"""The lake: a file is there whole or not at all, and what was changed since is noticed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
from pyarrow import fs

from assets.pipeline import lake as lake_module
from assets.pipeline.errors import LakeTrouble, StagedFileDamaged, TransientError
from assets.pipeline.lake import Lake, lake_path
from tests.stack import ROOT

PATH = lake_path("events", date(2026, 3, 5), "one.parquet")


def write(lake: Lake, data: bytes) -> tuple[int, str]:
    """Write the file; gives what would be registered."""
    with lake.create(PATH) as sink:
        sink.write(data[:3])
        sink.write(data[3:])
    return sink.bytes, sink.sha256


def write_half(lake: Lake) -> None:
    """Begin to write the file, and fail."""
    with lake.create(PATH) as sink:
        sink.write(b"half")
        raise ValueError("stop")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_written_file_is_read_back_and_proved(tmp_path: Path, scheme: str) -> None:
    """Bytes and hash are those of what was written, for a folder and for its URI."""
    lake = Lake(f"{scheme}{tmp_path}/lake")
    size, sha256 = write(lake, b"some bytes")
    assert (size, sha256) == (10, hashlib.sha256(b"some bytes").hexdigest())
    lake.check(PATH, size, sha256)
    with lake.open(PATH) as stream:
        assert stream.read() == b"some bytes"
    assert (tmp_path / "lake/events/arrival_date=2026-03-05/one.parquet").is_file()


def test_of_many_files_those_are_named_that_are_there(tmp_path: Path) -> None:
    """And those of which a killed writer has left something; a folder may be missing."""
    lake = Lake(str(tmp_path))
    write(lake, b"some bytes")
    cut, gone = PATH.replace("one", "cut"), PATH.replace("one", "gone")
    (tmp_path / f"{cut}.123.partial").touch()
    assert lake.there([PATH, cut, gone, "remade/none.parquet"]) == {PATH, cut}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """When the with-block raises there is no file, final or partial; an older one stays."""
    lake = Lake(str(tmp_path))
    with pytest.raises(ValueError, match="stop"):
        write_half(lake)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write(lake, b"whole")
    with pytest.raises(ValueError, match="stop"):
        write_half(lake)
    assert (tmp_path / PATH).read_bytes() == b"whole"


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    """A process killed in mid-write leaves no final file, and the next writer no trace of it."""
    code = (
        "import os, signal, sys; from assets.pipeline.lake import Lake\n"
        "with Lake(sys.argv[1]).create(sys.argv[2]) as sink:\n"
        "    sink.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), PATH], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert left.name != Path(PATH).name
    write(Lake(str(tmp_path)), b"whole")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / PATH]


@pytest.mark.parametrize("damage", ["changed", "cut", "longer", "gone"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    """A file that is missing, or not byte for byte what was registered, is refused by name."""
    lake = Lake(str(tmp_path))
    size, sha256 = write(lake, b"some bytes")
    file = tmp_path / PATH
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {"changed": b"some Bytes", "cut": b"some", "longer": b"some bytes!"}[damage]
        )
    with pytest.raises(StagedFileDamaged, match=r"one\.parquet"):
        lake.check(PATH, size, sha256)


def test_a_full_disk_is_worth_another_try(tmp_path: Path) -> None:
    """Trouble while writing is a TransientError that names the file, and leaves none."""
    lake = Lake(str(tmp_path))
    with pytest.raises(TransientError, match=r"one\.parquet"), lake.create(PATH):
        raise OSError(28, os.strerror(28))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:hunter2@bucket/x?option=none",
        "s3://KEY:hunter/2@bucket/x",
        "s4://KEY:hunter2@bucket/x",
        "s3://KEY:hunter2@bucket/x?region=a b",
    ],
)
def test_a_place_that_is_none_is_told_without_its_keys(uri: str) -> None:
    """What cannot be read of a URI is said back by Arrow as it stands."""
    with pytest.raises(LakeTrouble, match=r"s[34]://bucket/x is no place") as told:
        Lake(uri)
    assert "hunter" not in str(told.value)
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__


SILENCE = "When reading: AWS Error NETWORK_CONNECTION during GetObject operation: none"


def test_who_is_told_of_a_silence_at_once_is_told_in_an_error_of_their_own(tmp_path: Path) -> None:
    """Nothing is kept of the first one's, which holds what was being sent."""
    lake = Lake(str(tmp_path))
    causes = []
    for _ in range(3):
        with pytest.raises(LakeTrouble, match="the store does not answer") as told:
            with lake._asked("reading", PATH):
                raise OSError(SILENCE)
        causes.append(told.value.__cause__)
    first, *others = causes
    assert len({id(cause) for cause in causes}) == 3
    for other in others:
        assert isinstance(other, OSError)
        assert other.__context__ is None
        assert str(other) == str(first) == SILENCE


def test_each_part_that_was_sent_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who sends a long file is not taken for one that stands still."""
    monkeypatch.setattr(lake_module, "_SEND_BYTES", 10)
    (tmp_path / "events/arrival_date=2026-03-05").mkdir(parents=True)
    lake = Lake(str(tmp_path))
    lake.filesystem = fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("file")))
    sent: list[int] = []
    lake.on_sent = lambda: sent.append((tmp_path / PATH).stat().st_size)
    write(lake, bytes(100))
    assert len(sent) == 3
    assert sent[-1] == 100


def test_what_is_shown_of_a_store_has_no_keys() -> None:
    """Its URI stands in errors, in logs and in the UI."""
    assert Lake("s3://KEY:hunter2@bucket/x?region=eu-west-1").uri == "s3://bucket/x"
