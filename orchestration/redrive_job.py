"""The job `redrive`: dead letters tried again from the UI's launchpad.

Its configuration is what `tidemark redrive` takes. As there, a run that chooses nothing is a dry
run: its log and its output say what would come of it.
"""

from datetime import date

import dagster as dg
from pydantic import Field

from assets.metadata import loaded_metadata
from assets.pipeline.batch import State
from assets.pipeline.reasons import Reason
from assets.pipeline.redrive import Wanted, preview, redrive
from assets.report import told_failures
from assets.waiting_dates import keep_red
from orchestration.cli.redrive import document, text
from orchestration.one_step_job import one_step_job
from orchestration.partitions import partition_of
from orchestration.resources import Pipeline
from orchestration.retries import pool_of, retry_policy
from orchestration.settings import Settings

_PARENT, _ROOT = "dagster/parent_run_id", "dagster/root_run_id"
"""Tags of a run that tries another one again, by Dagster itself or because somebody says so."""


class RedriveConfig(dg.Config):
    """Which dead letters to try again; nothing chosen: a dry run over all of them."""

    reasons: list[str] = Field(
        default=[], description="Only those rejected for one of these reasons."
    )
    project: str = Field(default="", description="Only those of this project: its id or a token.")
    date: str = Field(default="", description="Only those of this arrival date, YYYY-MM-DD.")
    batch: str = Field(default="", description="Only those of this batch.")
    limit: int = Field(default=0, ge=0, description="At most so many, the oldest first; 0: all.")
    everything: bool = Field(default=False, description="All dead letters there are.")
    again: bool = Field(default=False, description="Those as well that failed too often before.")
    dry_run: bool = Field(default=False, description="Only say what would come of it.")

    def wanted(self) -> Wanted:
        """The same for the pipeline. Raises dagster.Failure for what makes no sense."""
        known = {reason.value for reason in Reason}
        if strange := sorted(set(self.reasons) - known):
            raise dg.Failure(
                f"no reason is called {', '.join(strange)}: there are {', '.join(sorted(known))}",
                allow_retries=False,
            )
        try:
            day = date.fromisoformat(self.date) if self.date else None
        except ValueError:
            raise dg.Failure(
                f"{self.date!r} is no date: write 2026-03-05", allow_retries=False
            ) from None
        return Wanted(
            tuple(self.reasons),
            self.project or None,
            day,
            self.batch or None,
            self.limit or None,
            self.again,
        )


def redrive_job(settings: Settings) -> dg.JobDefinition:
    """The job, for a deployment's topics."""

    @dg.op(
        name="try_again",
        pool=pool_of(settings.topic),
        retry_policy=retry_policy(settings),
        description="Choose dead letters, try them again, load and prove what became events.",
    )
    def op(
        context: dg.OpExecutionContext,
        config: RedriveConfig,
        pipeline: dg.ResourceParam[Pipeline],
    ) -> None:
        wanted = config.wanted()
        with told_failures(context):
            worker = pipeline.worker(context)
            only_look = config.dry_run or (wanted.says_nothing and not config.everything)
            runs = _same_choice(context)
            done = preview(worker, wanted) if only_look else redrive(worker, wanted, runs)
        for line in text(done):
            context.log.info(line)
        if only_look and done.letters and not config.dry_run:
            context.log.info(
                "nothing was done: choose some in the launchpad (reasons, project, date, batch), "
                "or say everything: true"
            )
        for batch in done.batches:
            if batch.state is State.COMMITTED and batch.staged and batch.staged.balance.ok:
                context.log_event(
                    dg.AssetMaterialization(
                        "events",
                        partition=partition_of(batch.arrival_date),
                        metadata=loaded_metadata(worker, batch),
                    )
                )
        keep_red(context, worker)
        redriven = dg.MetadataValue.json(document(done))
        if done.damaged:
            raise dg.Failure(
                f"dead letters were left out, because their files cannot be read: "
                f"{'; '.join(done.damaged)}. Bring them back, and redrive what they hold; all else "
                "is done",
                metadata={"redriven": redriven},
                allow_retries=False,
            )
        context.add_output_metadata({"redriven": redriven})

    return one_step_job(
        settings,
        op,
        "redrive",
        (
            "Try dead letters again with the code and the projects of now. Without a choice it is "
            "a dry run: the log says what would come of it."
        ),
    )


def _same_choice(context: dg.OpExecutionContext) -> set[str]:
    """This run, and those that it tries again because they failed: their choice is its own."""
    tags = context.run.tags
    parent = context.instance.get_run_by_id(tags.get(_PARENT, ""))
    if parent is None or parent.status is not dg.DagsterRunStatus.FAILURE:
        return {context.run.run_id}
    return {context.run.run_id, parent.run_id, tags[_ROOT]}
