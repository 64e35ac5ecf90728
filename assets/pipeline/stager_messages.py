"""What a run and its stagers say to each other (stager_pool.py, stager.py).

    run ──Terms, once──▶ stager ──Ready──▶ run
        ──Job──▶ Here, every few seconds ──▶
                 Answer: what to register, or the error ──▶ run

Messages are pickled. A stager is started from the code on disk, which somebody may have changed
under a run: so it says which code it is, and the run takes nothing from other code.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback
from dataclasses import dataclass
from typing import Any

from assets.pipeline.batch import Batch
from assets.pipeline.errors import BatchError
from assets.pipeline.key_upkeep import Window
from assets.pipeline.registering import Made
from orchestration.ledger.leases import Lease
from orchestration.settings import Settings


@dataclass(frozen=True)
class Terms:
    """The first message: what holds for every job. `share` as a Worker has it."""

    settings: Settings
    run_id: str
    share: int


@dataclass(frozen=True)
class Ready:
    """It has begun, with the code of that version (CODE_VERSION)."""

    version: str


@dataclass(frozen=True)
class Job:
    """An attempt at staging a batch; `window` is what its records are compared with.

    `copies` is the folder with copies of the window's key files, where the lake is not on this
    machine (key_copies.py).
    """

    batch: Batch
    number: int
    lease: Lease
    window: Window
    copies: str | None = None


@dataclass(frozen=True)
class Here:
    """The process is there. Its job has not moved on for so many seconds; 0 without one."""

    still_s: float


@dataclass(frozen=True)
class PackedError:
    """An error on its way to another process: not every one can be pickled as it is."""

    kind: type[BaseException]
    text: str
    values: dict[str, Any]

    def unpacked(self) -> BaseException:
        """The error, as it was raised."""
        error = self.kind.__new__(self.kind)
        Exception.__init__(error, self.text)
        vars(error).update(self.values)
        return error


@dataclass(frozen=True)
class Answer:
    """What came of a job: `made`, or an error; and the most memory the process ever held.

    `trace` says where an error was raised that this code has no name for.
    """

    made: Made | None
    error: PackedError | BaseException | None
    peak_bytes: int
    trace: str = ""

    def result(self) -> Made:
        """What was made. Raises what was raised, with `trace` as a note."""
        if self.error is None:
            assert self.made is not None
            return self.made
        error = self.error.unpacked() if isinstance(self.error, PackedError) else self.error
        if self.trace:
            error.add_note(self.trace)
        raise error


def answer_of(made: Made | None, error: Exception | None, peak_bytes: int) -> Answer:
    """The answer, of which everything arrives."""
    if error is None:
        return Answer(made, None, peak_bytes)
    trace = "" if isinstance(error, BatchError) else "".join(traceback.format_exception(error))
    return Answer(None, _packed(error), peak_bytes, trace)


def _packed(error: Exception) -> PackedError | BaseException:
    """An error for the way; one that would not arrive as it is, as its name and text."""
    if isinstance(error, BatchError):
        return PackedError(type(error), str(error), dict(vars(error)))
    with contextlib.suppress(Exception):
        arrived = pickle.loads(pickle.dumps(error))
        if (type(arrived), str(arrived)) == (type(error), str(error)):
            return error
    return PackedError(RuntimeError, f"{type(error).__name__}: {error}", {})
