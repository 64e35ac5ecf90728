"""What can go wrong with a batch, sorted by what can be done about it.

A `TransientError`, and what is derived from it, is worth another try as it is. With every other
error that would be in vain: it needs a person, other code, or another staging, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from assets.pipeline.batch import Range
from assets.pipeline.codes import Remedy, clickhouse_remedy, kafka_remedy


class BatchError(Exception):
    """A batch could not be carried on; its state in the ledger says how far it came.

    `code` is what ClickHouse or Kafka gave, `remedy` what is done about it (codes.py), and
    `next_try_at` (µs) when it is tried again, if that is known.
    """

    code: int | None = None
    remedy: Remedy = Remedy.REFUSED
    next_try_at: int | None = None


class TransientError(BatchError):
    """Kafka, ClickHouse or the lake is away or overloaded: the same call may work later."""

    remedy = Remedy.WAIT


class LakeTrouble(TransientError):
    """A file of the lake is there and cannot be read now: what needs it waits, others go on.

    Whether the lake is away shows when two batches in a row meet such a file.
    """

    remedy = Remedy.ALONE


class ClickHouseAway(TransientError):
    """ClickHouse does not answer, has no room, or the batch is too much for it as it is now."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code, self.remedy = code, clickhouse_remedy(code)


class ClickHouseRefused(BatchError):
    """ClickHouse answered with an error that does not pass by itself, or that nobody knows."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code, self.remedy = code, clickhouse_remedy(code)


class UnknownTrouble(BatchError):
    """An error that nobody has thought of: it is tried again a few times, then a person looks."""

    remedy = Remedy.UNKNOWN


class LoadingPaused(TransientError):
    """ClickHouse was away, or took nothing, several times: the next try is not due yet."""


class KafkaAway(TransientError):
    """Kafka does not answer, or not for this topic."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class KafkaRefusesUs(KafkaAway):
    """Kafka does not let us in, or not at this topic, or the settings make no client of it.

    It is met like Kafka away, what is staged is loaded meanwhile; but a person has to mend it.
    """

    remedy = Remedy.REPAIR


class KafkaRefused(BatchError):
    """Kafka answered with an error that does not pass by itself, or that nobody knows."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code, self.remedy = code, kafka_remedy(code)


class TopicMissing(KafkaAway):
    """Kafka has no topic of that name: it was not made yet, or it was deleted."""


class LaneTrouble(BatchError):
    """A lane cannot be carried on as it was planned; lanes of other topics can."""


class StagingPaused(LaneTrouble):
    """So much is staged and not loaded that no more is planned until there is room again."""

    remedy = Remedy.WAIT


class Gap(LaneTrouble):
    """Records of a planned range are no longer in Kafka.

    `missing` are the offsets that are gone, empty where Kafka did not say which.
    """

    def __init__(self, text: str, missing: Sequence[Range] = ()) -> None:
        super().__init__(text)
        self.missing = tuple(missing)


class TopicReplaced(LaneTrouble):
    """The topic of a batch was deleted, or made anew: its offsets mean other records now."""


class ImportTrouble(LaneTrouble):
    """A file that is imported is not there, cannot be read, or is not the one that was begun."""


class StagedFileDamaged(BatchError):
    """A staged file is missing or is not what was registered."""


class StagedFileLetGo(StagedFileDamaged):
    """A staged file was deleted by housekeeping, when all of it was proved to be loaded."""


class ProofFailed(BatchError):
    """ClickHouse holds something else than what was staged."""


class LeaseLost(TransientError):
    """Another worker has taken over; whatever this one still wanted to do is refused."""


class LeaseHeld(TransientError):
    """Another worker is at work on the topic."""


class PlanConflict(TransientError):
    """Another planner has moved a lane on; plan again from its new end."""


class SeenMeanwhile(TransientError):
    """Events of a batch were registered by others while it was staged: it is staged again."""


class StagerGone(TransientError):
    """The process that staged a batch was killed, or fell silent: the batch waits by itself."""

    remedy = Remedy.ALONE


class StagingStopped(TransientError):
    """Staging ended for another reason while the batch was at it: it is staged again."""


class LogTruncated(LaneTrouble):
    """Kafka's log ends before what was planned: records were lost on Kafka's side."""


class LedgerBehind(BatchError):
    """The ledger does not know of batches that ClickHouse holds: it is an older or another one."""


class KeyFileUnreadable(LakeTrouble):
    """A key file that the ledger names is missing, damaged or of another form."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"key file {path} cannot be read ({reason})")


ANSWERED = (
    ClickHouseAway,
    ClickHouseRefused,
    KafkaRefused,
    LakeTrouble,
    StagerGone,
    UnknownTrouble,
)
"""What is about one batch, when it reaches those who go on with the others."""


def is_given_up(error: BatchError) -> bool:
    """Whether the same would be refused again, or was tried often enough."""
    return isinstance(error, ANSWERED) and error.next_try_at is None
