"""`python -m tests.faults.run_worker`: one micro-batch, in a process that a test may kill.

Settings and the failpoint come from the environment, as everywhere. Exit code 3: what stopped it
is worth another try, and stands on stderr.
"""

from __future__ import annotations

import sys
from uuid import uuid4

from assets.pipeline.errors import TransientError
from assets.pipeline.worker import Worker, load_batches, load_dead_letters, stage_batches
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings


def main() -> int:
    """Carry every batch as far as it goes."""
    settings = Settings()
    worker = Worker(settings, open_ledger(settings.ledger), f"run-{uuid4().hex[:8]}")
    try:
        stage_batches(worker)
        load_batches(worker)
        load_dead_letters(worker)
    except TransientError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
