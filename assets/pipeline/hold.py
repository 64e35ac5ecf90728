"""Hold: is so much of a batch rejected that a person should look before anything is published?

A topic whose writer has changed its layout, or code that misreads it, shows as rejects by the
thousand; published, the half that is left would look like a quiet day. Such a batch is staged, so
nothing of it is lost, but waits in the state `held`.

Invariant: a client can hold back nobody's events. What the capture API takes in knowing that it
will be rejected (a token of no project, an event that is too large) does not count here.
"""

from __future__ import annotations

from assets.pipeline.batch import Staged
from assets.pipeline.reasons import KEPT_WHOLE


def reason_to_hold(batch_id: str, staged: Staged, percent: float, records: int) -> str:
    """Why the batch is to be held, and what can be done about it; empty when it is not.

    It is held when of its records more than `percent` and more than `records` are rejected.
    """
    delivered = staged.balance.delivered
    counted = {
        reason: count for reason, count in staged.reasons.items() if reason not in KEPT_WHOLE
    }
    rejected = sum(counted.values())
    if rejected <= records or rejected * 100 <= percent * delivered:
        return ""
    reasons = ", ".join(
        f"{count:,} {reason}"
        for reason, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    )
    return (
        f"{rejected:,} of {delivered:,} records ({rejected / delivered:.0%}) were rejected: "
        f"{reasons}. Nothing of it is in ClickHouse. `tidemark release {batch_id}` publishes it as "
        f"it is, `tidemark retry {batch_id} --restage` stages it again with the code of now, while "
        "its records can be read"
    )
