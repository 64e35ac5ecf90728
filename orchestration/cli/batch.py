"""`tidemark batch`: one micro-batch now, without Dagster; `tidemark retry`: one that waits."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import click

from assets.pipeline.errors import LaneTrouble
from assets.pipeline.worker import (
    Worker,
    load_batches,
    load_dead_letters,
    retry_batch,
    stage_batches,
)
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def batch(as_json: bool) -> None:
    """Run one micro-batch now: finish what was begun, then drain the topics up to their ends."""
    settings = Settings()
    worker = _worker(settings, lambda line: click.echo(line, err=as_json))
    held: list[LaneTrouble] = []
    stage_batches(worker, held)
    load_batches(worker)
    done = load_dead_letters(worker)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "batch_id": batch.batch_id,
                        "topic": batch.topic,
                        "arrival_date": batch.arrival_date.isoformat(),
                        "state": batch.state,
                        "ranges": [[r.partition, r.start, r.end] for r in batch.ranges],
                        **(vars(batch.staged.balance) if batch.staged else {}),
                    }
                    for batch in done
                ]
            )
        )
    elif not done and not held:
        print("nothing to do: nothing in Kafka waits to be loaded")
    for trouble in held:  # told last, because what can be loaded is loaded first
        raise trouble


@click.command()
@click.argument("batch_id")
@click.option("--accept-gap", is_flag=True, help="Count what Kafka has lost as absent, and go on.")
def retry(batch_id: str, accept_gap: bool) -> None:
    """Give a batch that waits for a person (gap, suspect) back to the next micro-batch."""
    state = retry_batch(_worker(Settings(), click.echo), batch_id, accept_gap)
    print(f"batch {batch_id} is {state} again: the next micro-batch takes it up")


def _worker(settings: Settings, say: Callable[[str], None]) -> Worker:
    return Worker(settings, open_ledger(settings.ledger), f"cli-{uuid.uuid4()}", say)
