"""What waits for a person, in words: the same in alarms, in runs, and on a date's page."""

from __future__ import annotations

from collections.abc import Sequence

from assets.pipeline.batch import Batch, State

_PAGES = {
    State.HELD: "dead-letters.md",
    State.GAP: "gaps.md",
    State.FAILED: "batch-failed.md",
    State.SUSPECT: "batch-failed.md",
}
_TOLD = 3  # batches, of any number


def waits_text(batch: Batch) -> str:
    """What waits, why, and what to do."""
    return (
        f"batch {batch.batch_id} of topic {batch.topic} is {batch.state.value} and waits for a "
        f"person: {batch.note} (`tidemark batch {batch.batch_id}`, docs/{_PAGES[batch.state]})"
    )


def waits_texts(batches: Sequence[Batch], *, dated: bool = False) -> str:
    """The same of a few of these batches, and how many more there are."""
    told = [
        f"{batch.arrival_date}: {waits_text(batch)}" if dated else waits_text(batch)
        for batch in batches[:_TOLD]
    ]
    more = len(batches) - _TOLD
    return "; ".join([*told, *([f"and {more:,} more: `tidemark status`"] if more > 0 else [])])
