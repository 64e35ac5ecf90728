"""What can go wrong with a batch, sorted by what can be done about it.

A `TransientError`, and what is derived from it, is worth another try as it is. With every other
error that would be in vain: it needs a person, other code, or another staging, and says so.
"""

from __future__ import annotations


class BatchError(Exception):
    """A batch could not be carried on; its state in the ledger says how far it came."""


class TransientError(BatchError):
    """Kafka, ClickHouse or the lake is away or overloaded: the same call may work later."""


class KafkaAway(TransientError):
    """Kafka does not answer, or not for this topic."""


class TopicMissing(KafkaAway):
    """Kafka has no topic of that name: it was not made yet, or it was deleted."""


class LaneTrouble(BatchError):
    """A lane cannot be carried on as it was planned; lanes of other topics can."""


class Gap(LaneTrouble):
    """Records of a planned range are no longer in Kafka."""


class TopicReplaced(LaneTrouble):
    """The topic of a batch was deleted, or made anew: its offsets mean other records now."""


class StagedFileDamaged(BatchError):
    """A staged file is missing or is not what was registered."""


class ProofFailed(BatchError):
    """ClickHouse holds something else than what was staged."""


class LeaseLost(TransientError):
    """Another worker has taken over; whatever this one still wanted to do is refused."""


class LeaseHeld(TransientError):
    """Another worker is at work on the topic."""


class PlanConflict(TransientError):
    """Another planner has moved a lane on; plan again from its new end."""


class LogTruncated(LaneTrouble):
    """Kafka's log ends before what was planned: records were lost on Kafka's side."""


class LedgerBehind(BatchError):
    """The ledger does not know of batches that ClickHouse holds: it is an older or another one."""


class KeyFileUnreadable(BatchError):
    """A key file that the ledger names is missing, damaged or of another form."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"key file {path} cannot be read ({reason})")
