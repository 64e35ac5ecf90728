"""The jobs `import_files` and `discard_import`: exported files into `events`, from the launchpad.

Its configuration is what `tidemark import` takes; the files have to be where the run is. A run
that is terminated, or fails, is launched again with the same configuration: it goes on from where
it stood. What it had loaded by then is told as it ends; a run that was killed leaves that to the
next one for the same file. A wrong file, of which nothing is loaded, is thrown away by its name.
"""

import datetime

import dagster as dg
from pydantic import Field

from assets.metadata import loaded_metadata
from assets.pipeline.batch import State
from assets.pipeline.discard import discard_import
from assets.pipeline.import_file import ImportFile
from assets.pipeline.imports import import_file
from assets.pipeline.worker import Worker
from assets.report import not_told, told_failures
from assets.waiting_dates import keep_red
from orchestration.cli.imports import discarded_text, document, text
from orchestration.ledger.batches import batches_in
from orchestration.ledger.connection import now_us
from orchestration.ledger.errors import LedgerRefused
from orchestration.ledger.imports import all_imports
from orchestration.one_step_job import one_step_job
from orchestration.partitions import partition_of
from orchestration.resources import Pipeline
from orchestration.retries import retry_policy
from orchestration.settings import Settings


class ImportConfig(dg.Config):
    """Which files to import, and into what."""

    files: list[str] = Field(description="Paths on the run's host, or URIs (s3://…, gs://…).")
    project: str = Field(description="Into this project: its id or a token.")
    date: str = Field(
        default="", description="The arrival date of what is imported, YYYY-MM-DD; empty: today."
    )

    def day(self) -> datetime.date | None:
        """The arrival date. Raises dagster.Failure for what is none."""
        try:
            return datetime.date.fromisoformat(self.date) if self.date else None
        except ValueError:
            raise dg.Failure(
                f"{self.date!r} is no date: write 2026-03-05", allow_retries=False
            ) from None


def import_job(settings: Settings) -> dg.JobDefinition:
    """The job, beside a deployment's topics."""

    @dg.op(
        name="import_them",
        pool=f"import_{settings.topic}",
        retry_policy=retry_policy(settings),
        description="Look through each file, then plan, stage, load and prove it batch by batch.",
    )
    def op(
        context: dg.OpExecutionContext,
        config: ImportConfig,
        pipeline: dg.ResourceParam[Pipeline],
    ) -> None:
        day = config.day()
        worker = pipeline.worker(context)
        documents = []
        for file in config.files:
            try:
                with told_failures(context):
                    done = import_file(worker, file, config.project, day)
            except LedgerRefused as error:
                raise dg.Failure(str(error), allow_retries=False) from error
            finally:
                with told_failures(context):
                    _tell(context, worker, file)
            context.log.info(text(done))
            documents.append(document(done))
        context.add_output_metadata({"imported": dg.MetadataValue.json(documents)})

    return one_step_job(
        settings,
        op,
        "import_files",
        (
            "Import exported files (JSON lines or Parquet) as if their events had come in, while "
            "micro-batches go on. Terminated or failed, it goes on when it is launched again."
        ),
    )


class DiscardConfig(dg.Config):
    """What to throw away."""

    name: str = Field(description="The import, import:…: `tidemark import --list` has the name.")


def discard_job(settings: Settings) -> dg.JobDefinition:
    """The job that throws an import away."""

    @dg.op(
        name="discard_it",
        pool=f"import_{settings.topic}",
        retry_policy=retry_policy(settings),
        description="See that nothing of the import is loaded, then throw away what is staged.",
    )
    def op(
        context: dg.OpExecutionContext,
        config: DiscardConfig,
        pipeline: dg.ResourceParam[Pipeline],
    ) -> None:
        with told_failures(context):
            done = discard_import(pipeline.worker(context), config.name)
        context.log.info(discarded_text(done))
        context.add_output_metadata(
            {
                "import": done.one.name,
                "rows": done.rows,
                "batches": [batch.batch_id for batch in done.batches],
                "files": [file.path for file in done.files],
            }
        )

    return one_step_job(
        settings,
        op,
        "discard_import",
        (
            "Throw away an import of the wrong file, as long as nothing of it is loaded. Refused "
            "otherwise; the same file can be imported again."
        ),
    )


def _tell(context: dg.OpExecutionContext, worker: Worker, file: str) -> None:
    """A materialization for each loaded batch of a file that none tells of, whoever loaded it.

    What is older than the runs that are kept was told by one that is gone.
    """
    days = worker.settings.keep_runs_days
    since = now_us() - days * 86_400_000_000 if days else 0
    uri = ImportFile(file).uri
    loaded = [
        batch
        for one in all_imports(worker.ledger, worker.settings.topic)
        if one.uri == uri
        for batch in batches_in(worker.ledger, one.name, State.COMMITTED)
        if not batch.is_redrive and (batch.committed_at or 0) >= since
    ]
    for batch in not_told(context.instance, dg.AssetKey("events"), loaded):
        context.log_event(
            dg.AssetMaterialization(
                "events",
                partition=partition_of(batch.arrival_date),
                metadata=loaded_metadata(worker, batch),
            )
        )
    keep_red(context, worker)
