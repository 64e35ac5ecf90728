"""What can go wrong with a batch, sorted by what can be done about it.

A `TransientError` is worth another try as it is. Every other error here needs a person, or other
code, and says what to do; trying again blindly would not help.
"""

from __future__ import annotations


class BatchError(Exception):
    """A batch could not be carried on; its state in the ledger says how far it came."""


class TransientError(BatchError):
    """Kafka, ClickHouse or the lake is away or overloaded: the same call may work later."""


class Gap(BatchError):
    """Records of a planned range are no longer in Kafka."""


class TopicReplaced(BatchError):
    """The topic of a batch was deleted and made anew: its offsets mean other records now."""


class StagedFileDamaged(BatchError):
    """A staged file is missing or is not what was registered."""


class ProofFailed(BatchError):
    """ClickHouse holds something else than what was staged."""


class LeaseLost(BatchError):
    """Another worker has taken over; whatever this one still wanted to do is refused."""


class LeaseHeld(BatchError):
    """Another worker is at work on the topic."""
