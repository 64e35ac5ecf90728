"""All of housekeeping in its order, and the report.

    runs ─▶ replaced dates ─▶ staged files ─▶ dead letters ─▶ rows ─▶ index ─▶ ledger

Each kind has a bounded time and what is left is the next run's; each later one may need that an
earlier one is done. With a dry run everything is looked at and proved, and nothing changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from assets.pipeline.worker import Worker
from orchestration.housekeeping.keys import let_go_of_index
from orchestration.housekeeping.letters import let_go_of_letters
from orchestration.housekeeping.parts import Parts, most_parts
from orchestration.housekeeping.records import forget_batches, forget_what_is_over
from orchestration.housekeeping.replaced import let_go_of_replaced
from orchestration.housekeeping.rows import let_go_of_events
from orchestration.housekeeping.runs import let_go_of_runs, old_runs
from orchestration.housekeeping.staged import let_go_of_staged
from orchestration.housekeeping.tally import PATIENCE_S, Tally


@dataclass(frozen=True)
class Report:
    """What went, or would go; and how ClickHouse's parts stand."""

    dry_run: bool
    tallies: tuple[Tally, ...]
    parts: Parts

    def document(self) -> dict[str, Any]:
        """All of it, as one document."""
        return {
            "dry_run": self.dry_run,
            "let_go": [
                {
                    "what": tally.what,
                    "count": tally.count,
                    "bytes": tally.bytes,
                    "kept": dict(tally.kept),
                    "cut_short": tally.cut_short,
                }
                for tally in self.tallies
            ],
            "parts": vars(self.parts),
        }


def keep_house(
    worker: Worker, instance: dg.DagsterInstance | None, *, dry_run: bool = False
) -> Report:
    """Let go of everything that has served its time. Without an instance Dagster's runs stay."""
    settings = worker.settings
    return Report(
        dry_run,
        (
            *([_runs(worker, instance, dry_run)] if instance is not None else []),
            let_go_of_replaced(worker, settings.keep_replaced_days, dry_run=dry_run),
            let_go_of_staged(worker, settings.keep_staged_days, dry_run=dry_run),
            let_go_of_letters(worker, settings.keep_dead_letters_days, dry_run=dry_run),
            let_go_of_events(worker, settings.keep_events_days, dry_run=dry_run),
            let_go_of_index(worker, settings.keep_keys_days, dry_run=dry_run),
            forget_batches(worker, settings.keep_ledger_days, dry_run=dry_run),
            forget_what_is_over(worker, settings.keep_ledger_days, dry_run=dry_run),
        ),
        most_parts(worker),
    )


def _runs(worker: Worker, instance: dg.DagsterInstance, dry_run: bool) -> Tally:
    tally, days = Tally("runs of Dagster"), worker.settings.keep_runs_days
    if days:
        before = datetime.now(UTC) - timedelta(days=days)
        if dry_run:
            tally.add(old_runs(instance, before))
        else:
            tally.add(let_go_of_runs(instance, before, PATIENCE_S))
            tally.cut_short = old_runs(instance, before) > 0
    return tally
