"""Named points between two steps at which a test may kill or stop the process.

`TIDEMARK_FAILPOINT=after-insert` makes the process kill itself, as `kill -9` would, the first
time it passes that point; with `after-insert:stop` it stops there, as `kill -STOP` would, until
somebody lets it go on; with `after-insert:hang` the thread that is there stays there, and others go
on. With `@/a/file` it is what that file says, and only for the process that
comes first: the file is gone then. Unset, a point costs a look into the environment.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

VARIABLE = "TIDEMARK_FAILPOINT"

POINTS = (
    "before-plan",  # cut, not stored
    "after-plan",
    "while-staging",  # everything is written, under names of its own
    "half-published",  # the first file has its name, the others have not
    "after-stage",  # files written, not registered
    "after-register",  # the ledger names the files, nothing is tidied up
    "between-topics",  # one topic is staged, the next is not planned
    "before-insert",
    "before-check",  # the proof said "nothing"
    "before-send",  # the file is whole, the lease is ours, nothing is sent
    "after-send",  # rows in ClickHouse, not proved
    "after-insert",  # rows in ClickHouse and proved, the ledger does not know
    "after-loaded",
    "after-commit",  # the group's offsets are committed, the ledger does not know
    "after-dead-letters",
    "after-mirror",
)

STAGERS_POINTS = (
    "begun",  # a stager has a batch
    "before-answer",  # in the stager: files written, the run does not know
    "compared",  # with what the index has got meanwhile, not registered
    "stage-again",  # that had keys of the batch: its attempt has failed, the next is not begun
)
"""Those of a run with stagers, besides. What is passed while files are made the stager passes."""

REBUILD_POINTS = (
    "rebuild-filled",  # the shadow has all, nothing is kept aside yet
    "rebuild-keeps",  # copied to be kept aside, the lease is ours, nothing is sent
    "rebuild-kept",  # kept aside, the ledger does not know
    "rebuild-swapping",  # the ledger knows, nothing is replaced
    "rebuild-swaps",  # the copy of the shadow is proved, the lease is ours, nothing is sent
    "rebuild-replaced",  # the shadow is in place, the ledger does not know
    "rebuild-returns",  # copied to be in place again, the lease is ours, nothing is sent
    "rebuild-returned",  # what was kept is in place again, the ledger does not know
)
"""Those of a rebuild."""

REMAKE_POINTS = (
    "remade",  # a batch's new file is whole, the ledger does not know
    "remake-noted",  # the ledger knows, the next one is not begun
    "remakes-placed",  # old and new files have the names that they will have; the old ones count
    "remakes-used",  # the new ones count, nothing is tidied up
    "remakes-returned",  # the old ones count again, nothing is tidied up
)
"""Those of a rebuild that makes staged files anew, besides."""

HOUSEKEEPING_POINTS = (
    "let-go-marked",  # the ledger says that a date's files are let go of, all are there
    "let-go-deleted",  # some of them are deleted, the ledger does not know
    "letters-marked",  # files and rows of dead letters are let go of, both are there
    "letters-deleted",  # the ledger does not know
    "rows-marked",  # a date of events is let go of, it is there
    "rows-moved",  # into a copy, which is there
    "keys-marked",
    "keys-deleted",
    "rows-forgotten",  # some of a date's batches are forgotten by the ledger
)
"""Those of housekeeping."""

DISCARD_POINTS = (
    "discarded",  # the ledger has thrown an import away, its files are there
    "discard-deleted",  # they are deleted, the mirror does not know
)
"""Those of an import that is thrown away."""

DAGSTER_POINTS = (
    "date-is-red",  # the dates of waiting batches are red, no run says that it has told of them
)
"""Those of what Dagster shows."""


def failpoint(name: str) -> None:
    """Die or stop here if the environment says so."""
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted.startswith("@"):
        wanted = _taken(Path(wanted[1:]), name)
    if wanted == name:
        os.kill(os.getpid(), signal.SIGKILL)
    elif wanted == f"{name}:stop":
        del os.environ[VARIABLE]  # once
        os.kill(os.getpid(), signal.SIGSTOP)
    elif wanted == f"{name}:hang":
        threading.Event().wait()


def _taken(file: Path, name: str) -> str | None:
    """What a file says of this point, if no other process was here before."""
    try:
        wanted = file.read_text()
        if wanted.partition(":")[0] != name:
            return None
        file.unlink()
    except FileNotFoundError:
        return None
    return wanted
