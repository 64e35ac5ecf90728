"""The one resource of the assets: the settings, the ledger, and the worker of this run.

Opened when a run begins, closed when it ends. The clients in it (Kafka, ClickHouse, lake) open on
first use and serve all assets of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import dagster as dg
from sqlalchemy import Engine

from assets.pipeline.batch import Batch
from assets.pipeline.errors import BatchError
from assets.pipeline.worker import Worker
from orchestration.ledger.connection import open_ledger
from orchestration.lost_runs import worker_tag
from orchestration.settings import Settings

TOPIC_TAG = "tidemark/topic"
TOPICS_TAG = "tidemark/topics"
"""The topics that a run takes, of those that have a cadence of their own; without it: all."""
BATCHES_TAG = "tidemark/batch_id"
RANGES_TAG = "tidemark/ranges"

_TAG_CHARACTERS = 500


class Pipeline:
    """What an asset is given."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.refusals: list[BatchError] = []
        """Why topics could not be read that a person has to let us at: the run fails in the end."""
        self._worker: Worker | None = None

    @cached_property
    def ledger(self) -> Engine:
        """The plan of record."""
        return open_ledger(self.settings.ledger)

    def worker(
        self,
        context: dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    ) -> Worker:
        """The run's worker, speaking to the log of the step that asks for it."""
        if self._worker is None:
            topics = frozenset(context.run.tags.get(TOPICS_TAG, "").split())
            self._worker = Worker(self.settings, self.ledger, context.run.run_id, only=topics)
            context.instance.add_run_tags(
                context.run.run_id,
                {TOPIC_TAG: self.settings.topic, **worker_tag(context.run.run_id)},
            )
        self._worker.say = context.log.info
        return self._worker

    def tag_run(self, context: dg.AssetExecutionContext, batches: Sequence[Batch]) -> None:
        """Put the batches that a run carries into its tags, as far as they fit."""
        by_id = {batch.batch_id: batch for batch in batches}
        if by_id:
            ranges = " ".join(
                str(r) if batch.topic == self.settings.topic else f"{batch.topic}/{r}"
                for batch in by_id.values()
                for r in batch.ranges
            )
            tags = {BATCHES_TAG: _cut(" ".join(by_id)), RANGES_TAG: _cut(ranges)}
            context.instance.add_run_tags(context.run.run_id, tags)

    def close(self) -> None:
        """Let go of the ledger's connections."""
        if "ledger" in vars(self):
            self.ledger.dispose()


def pipeline_resource(settings: Settings) -> dg.ResourceDefinition:
    """The resource, for a run with these settings."""

    def open_pipeline(_context: dg.InitResourceContext) -> Iterator[Pipeline]:
        pipeline = Pipeline(settings)
        try:
            yield pipeline
        finally:
            pipeline.close()

    return dg.ResourceDefinition(
        open_pipeline,
        description=(
            f"The batch pipeline with its connections: topic {settings.topic} and those beside it, "
            f"database {settings.clickhouse_database}. "
            "`tidemark settings` lists what it is set to."
        ),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _TAG_CHARACTERS else text[: _TAG_CHARACTERS - 2] + " …"
