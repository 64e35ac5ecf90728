"""Jobs of one step: what an operator starts beside the micro-batches, as commands do, too."""

from __future__ import annotations

import dagster as dg

from orchestration.resources import TOPIC_TAG
from orchestration.settings import Settings


def one_step_job(
    settings: Settings, step: dg.OpDefinition, name: str, description: str
) -> dg.JobDefinition:
    """The job of a deployment's topics that is this step, in the run's own process."""

    @dg.job(
        name=name,
        executor_def=dg.in_process_executor,
        tags={TOPIC_TAG: settings.topic},
        description=description,
    )
    def job() -> None:
        step()

    return job
