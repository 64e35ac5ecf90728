"""The demo's home: made, marked and removed by the demo, and no other folder ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_stack.errors import StackError
from local_stack.processes import AlreadyRunning, locked
from orchestration.demo.run import MARK, clear_away


def test_a_folder_that_no_demo_made_is_kept(tmp_path: Path) -> None:
    """A person's folder called demo is refused in one line, and stays as it is."""
    home = tmp_path / "demo"
    home.mkdir()
    (home / "thesis.txt").write_text("the only copy")
    with pytest.raises(StackError, match="was not made by the demo") as refused:
        clear_away(home)
    assert "\n" not in str(refused.value)
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def test_what_a_demo_left_is_removed(tmp_path: Path) -> None:
    """A marked folder goes with all that is in it; one that is empty or absent is no fault."""
    home = tmp_path / "demo"
    clear_away(home)
    home.mkdir()
    clear_away(home)
    (home / MARK).touch()
    (home / "lake").mkdir()
    clear_away(home)
    assert list(tmp_path.iterdir()) == []


def test_the_home_of_a_live_demo_is_kept(tmp_path: Path) -> None:
    """A folder is only removed by who holds its lock."""
    home = tmp_path / "demo"
    home.mkdir()
    (home / MARK).touch()
    with locked(home, "another demo"), pytest.raises(AlreadyRunning, match="another demo"):
        clear_away(home)
    assert (home / MARK).exists()
