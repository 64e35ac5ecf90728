"""What waits for a person, in words: the same in alarms, in runs, and on a date's page."""

from __future__ import annotations

from assets.pipeline.batch import Batch, State

_PAGES = {
    State.HELD: "dead-letters.md",
    State.GAP: "gaps.md",
    State.FAILED: "batch-failed.md",
    State.SUSPECT: "batch-failed.md",
}


def waits_text(batch: Batch) -> str:
    """What waits, why, and what to do."""
    return (
        f"batch {batch.batch_id} of topic {batch.topic} is {batch.state.value} and waits for a "
        f"person: {batch.note} (`tidemark batch {batch.batch_id}`, docs/{_PAGES[batch.state]})"
    )
