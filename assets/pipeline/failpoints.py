"""Named points between two stages at which a test may kill the process.

`TIDEMARK_FAILPOINT=after-insert` makes the process kill itself, as `kill -9` would, the first
time it passes that point. Unset, a point costs a look into the environment.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "TIDEMARK_FAILPOINT"

POINTS = (
    "after-plan",
    "after-stage",  # files written, not registered
    "after-register",
    "before-insert",
    "after-insert",  # rows in ClickHouse, the ledger does not know
    "after-loaded",
)


def failpoint(name: str) -> None:
    """Die here if the environment says so."""
    if os.environ.get(VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
