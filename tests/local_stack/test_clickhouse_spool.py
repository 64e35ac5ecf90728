"""Spool files: gone at the end of their request, whatever the disk says."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local_stack.clickhouse import spool, statement
from local_stack.clickhouse.statement import Load


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_leaves_no_spool_files(tmp_path: Path) -> None:
    """What cannot be written out at the end is dropped, and every file is unlinked."""
    full = os.open("/dev/full", os.O_WRONLY)
    with spool.scratch(tmp_path) as make:
        for _ in range(2):
            file, _path = make()
            file.write(b"still in the buffer")
            os.dup2(full, file.fileno())
        assert len(list(tmp_path.iterdir())) == 2
    os.close(full)
    assert list(tmp_path.iterdir()) == []


def test_a_long_head_is_cut_outside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long INSERT … SELECT is looked at in another thread than the one that serves."""
    threads = []
    cut = statement.load

    def watched(text: bytes) -> Load | None:
        threads.append((len(text) > spool.LONG_BYTES, threading.get_ident()))
        return cut(text)

    monkeypatch.setattr(statement, "load", watched)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"INSERT INTO t SELECT 1"
        for _ in range(8):
            yield b", 1" * 20_000

    async def take() -> int:
        with spool.scratch(tmp_path) as make:
            taken = await spool.take(b"", pieces(), "", make)
        assert taken.load is None
        return threading.get_ident()

    serving = asyncio.run(take())
    long = [thread for is_long, thread in threads if is_long]
    assert long
    assert serving not in long
