"""The time that each step of a record's way took, from its receipt to the commit of its batch."""

from __future__ import annotations

from itertools import pairwise

from assets.pipeline.batch import IMPORT_PREFIX, Batch
from orchestration.explain.record import Record, Verdict


def steps(record: Record, batch: Batch | None) -> dict[str, float]:
    """Seconds by step, in their order; only of steps that are behind it.

    The broker's clock is another than the capture API's and the worker's, and counts in ms: a
    step may come out as nothing, or less. An imported record has no way before its batch's plan.
    """
    received = None if record.received_at is None else record.received_at // 1000 * 1000
    moments: list[tuple[str, int | None]] = [
        ("receive", received),
        ("to_kafka", record.appended_at),
    ]
    if record.place.topic.startswith(IMPORT_PREFIX):
        moments = []
    if batch is not None:
        moments += [("until_planned", batch.planned_at), ("to_stage", batch.staged_at)]
        if record.verdict is Verdict.LOADED:
            moments += [("to_load", batch.loaded_at), ("to_commit", batch.committed_at)]
        elif record.verdict is Verdict.DEAD_LETTER:
            moments.append(("to_load", batch.dead_letters_loaded_at))
    known = [(name, at) for name, at in moments if at is not None]
    return {
        name: round((at - before) / 1_000_000, 3) for (_, before), (name, at) in pairwise(known)
    }
