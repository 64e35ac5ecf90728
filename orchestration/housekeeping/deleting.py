"""Deleting what the ledger has let go of, and noting that it is gone: files of any kind.

    marked in the ledger ─▶ deleted in the lake ─▶ noted as deleted     some at a time

A file that cannot be deleted stays marked: the next run tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from assets.pipeline.errors import TransientError
from assets.pipeline.failpoints import failpoint
from assets.pipeline.worker import Worker
from orchestration.housekeeping.tally import Tally

NOT_DELETED = "it could not be deleted: the next run tries again"

FILES_AT_ONCE = 500


class _File(Protocol):
    @property
    def path(self) -> str: ...


AnyFile = TypeVar("AnyFile", bound=_File)


def delete_marked(
    worker: Worker,
    tally: Tally,
    marked: Callable[[int], Sequence[AnyFile]],
    note: Callable[[Sequence[AnyFile]], None],
    size: Callable[[AnyFile], tuple[int, int]],
    gone_point: str,
    before: Callable[[Sequence[AnyFile]], None] = lambda files: None,
) -> None:
    """Delete what is marked, as long as there is time.

    `marked` gives so many of the files, `note` notes that some are gone, `size` is how many things
    a file counts as and its bytes. `before` is done first with all that are about to be deleted;
    `gone_point` is the failpoint between deleting and noting.
    """
    while tally.has_time():
        files = marked(FILES_AT_ONCE)
        before(files)
        gone: list[AnyFile] = []
        for file in files:
            try:
                worker.lake.delete(file.path)
            except TransientError as error:
                worker.say(f"{NOT_DELETED}: {error}")
                tally.kept[NOT_DELETED] += size(file)[0]
            else:
                gone.append(file)
        if gone:
            failpoint(gone_point)
            note(gone)
            for file in gone:
                tally.add(*size(file))
        if len(gone) < FILES_AT_ONCE:
            return
