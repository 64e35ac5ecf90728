"""`python -m tests.faults.run_worker`: one micro-batch, in a process that a test may kill.

Settings and the failpoint come from the environment, and the steps are those of `tidemark batch`.
Exit code 3: what stopped it is worth another try; 4: everything else is loaded, but a lane or a
batch waits for a person; 5: a person is needed first. The reason stands on stderr.
"""

from __future__ import annotations

import sys
from uuid import uuid4

from assets.pipeline.errors import (
    BatchError,
    KafkaAway,
    LoadingPaused,
    StagingPaused,
    TransientError,
)
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.worker import Worker
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings

AGAIN = 3
WAITS = 4
STOPPED = 5


def main() -> int:
    """Carry every batch as far as it goes."""
    settings = Settings()
    worker = Worker(settings, open_ledger(settings.ledger), f"run-{uuid4().hex[:8]}")
    held: list[BatchError] = []
    try:
        stage_batches(worker, held, loads_early=True)
        load_batches(worker, held)
        load_dead_letters(worker, held)
    except TransientError as error:
        print(error, file=sys.stderr)
        return AGAIN
    except BatchError as error:
        print(error, file=sys.stderr)
        return STOPPED
    for trouble in held:
        print(trouble, file=sys.stderr)
    if all(isinstance(trouble, (KafkaAway, LoadingPaused, StagingPaused)) for trouble in held):
        return AGAIN if held else 0
    return WAITS


if __name__ == "__main__":
    sys.exit(main())
