"""Early loads: batches that are staged are loaded in a thread while the next ones are staged.

    stage_batches ──more is planned──▶ what is staged waits in line ──▶ load_early, one at a time

Two batches are under way then, one being staged and one being loaded, each in a state of its own
and both under the worker's one lease. What waits in line is a row of the ledger and a file of the
lake, so memory holds no more of it however slow ClickHouse is.

Invariant: an early load decides nothing. What goes wrong in it is said, ends early loading for this
run, and is left to load_batches, which begins with the proof and meets it in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from assets.pipeline.batch import Batch, Kind, State
from assets.pipeline.circuit import LOAD
from assets.pipeline.loading import load_early
from assets.pipeline.worker import Worker
from orchestration.ledger.leases import Lease


class EarlyLoads:
    """A thread for the length of a with-block, which ends when no load is under way any more.

    Without `wanted` it takes nothing.
    """

    def __init__(self, worker: Worker, lease: Lease, wanted: bool = True) -> None:
        self._worker = worker
        self._lease = lease
        self._taken = 0
        # Where the table has failed lately, load_batches knows what is due, and when.
        self._goes_on = wanted and not worker.circuit(lease, LOAD, Kind.EVENTS).fails
        self._thread = ThreadPoolExecutor(1, "load")

    def __enter__(self) -> EarlyLoads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._goes_on = False
        self._thread.shutdown(cancel_futures=True)

    def take(self, staged: Sequence[Batch]) -> None:
        """Load the batches of this growing list that were not taken before."""
        fresh, self._taken = staged[self._taken :], len(staged)
        for batch in fresh:
            if self._goes_on and batch.state is State.STAGED:
                self._thread.submit(self._load, batch)

    def _load(self, batch: Batch) -> None:
        if not self._goes_on:
            return
        try:
            load_early(self._worker, self._lease, batch)
        except Exception as error:  # whatever it is: see above
            self._goes_on = False
            self._worker.say(f"batch {batch.batch_id} is loaded when all is staged: {error}")
