"""The check `rejects_share`: is more of a date, or of the newest run, rejected than usual?

A batch that is mostly rejected is held, and red in `balance`. This warns before that, of what is
published all the same: a part of the senders that broke, a token that is known no more.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets.answers import answer
from assets.metadata import table_of
from assets.pipeline.reasons import SENTENCES, Reason
from assets.pipeline.worker import Worker
from assets.queryable import QUERYABLE
from orchestration.ledger.batches import newest_batches
from orchestration.ledger.rejects import Rejects, rejects_of, rejects_of_date
from orchestration.settings import Settings

REJECTS_SHARE = dg.AssetCheckSpec(
    "rejects_share",
    asset=QUERYABLE,
    description=(
        "Of the records of the newest batch's date, and of those of the newest run, no more are "
        "dead letters than TIDEMARK_WARN_REJECTS_PERCENT. Letters that were redriven count no more."
    ),
)


_OF_RUN = 50
"""Batches of each topic, at most, that are taken for those of the newest run."""


def rejects_result(worker: Worker) -> dg.AssetCheckResult:
    """Of the date that the newest batch is of, and of the newest run."""
    settings = worker.settings
    newest = [
        batch
        for topic in settings.topics
        for batch in newest_batches(worker.ledger, topic, _OF_RUN)
        if not batch.is_redrive
    ]
    last = max(newest, key=lambda batch: batch.planned_at, default=None)
    day = last.arrival_date if last else None
    of_date = rejects_of_date(worker.ledger, day, *settings.topics) if day else Rejects()
    of_run = rejects_of(batch for batch in newest if last and batch.run_id == last.run_id)
    many = [
        f"{told}: {_text(rejects)}"
        for told, rejects in ((f"of {day}", of_date), ("of the newest run", of_run))
        if _are_too_many(settings, rejects)
    ]
    if many:
        told = (
            f"{'; '.join(many)}. TIDEMARK_WARN_REJECTS_PERCENT is "
            f"{settings.warn_rejects_percent:g}. {settings.clickhouse_database}.dead_letters says "
            "what they are (`reason`, `detail`, `value`); when their sender, or the project, is "
            "mended, `tidemark redrive` tries them again (docs/dead-letters.md)"
        )
    else:
        told = f"of {day}: {_text(of_date)}" if day else "there is no batch yet"
    metadata: dict[str, Any] = {
        "records": of_date.records,
        "rejected": of_date.rejected,
        "redriven": of_date.settled,
        "rejected_percent": round(of_date.percent, 3),
        "warns_beyond_percent": settings.warn_rejects_percent,
        "reasons": table_of(
            [(reason, count, SENTENCES[Reason(reason)]) for reason, count in _ordered(of_date)],
            ("reason", "string"),
            ("records", "int"),
            ("meaning", "string"),
        ),
    }
    if of_run.records:
        metadata["records_of_run"] = of_run.records
        metadata["rejected_percent_of_run"] = round(of_run.percent, 3)
    return answer(REJECTS_SHARE, not many, told, metadata, dg.AssetCheckSeverity.WARN)


def _are_too_many(settings: Settings, rejects: Rejects) -> bool:
    return (
        rejects.left > settings.warn_rejects_records
        and rejects.percent > settings.warn_rejects_percent
    )


def _text(rejects: Rejects) -> str:
    redriven = f" and {rejects.settled:,} more are redriven" if rejects.settled else ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in _ordered(rejects))
    return (
        f"{rejects.left:,} of {rejects.records:,} records ({rejects.percent:.1f}%) are dead letters"
        f"{redriven}" + (f" ({reasons})" if reasons else "")
    )


def _ordered(rejects: Rejects) -> list[tuple[str, int]]:
    return sorted(rejects.reasons.items(), key=lambda item: (-item[1], item[0]))
