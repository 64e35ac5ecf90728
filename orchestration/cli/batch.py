"""`tidemark batch`: a micro-batch now, or one batch shown; `retry`, `release`: one that waits."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import click

from assets.pipeline.batch import State
from assets.pipeline.errors import BatchError, KafkaAway
from assets.pipeline.loading import load_batches, load_dead_letters
from assets.pipeline.staging import stage_batches
from assets.pipeline.tell_standing import tell_standing
from assets.pipeline.waiting import release_batch, restage_batch, retry_all, retry_batch, to_retry
from assets.pipeline.worker import Worker
from orchestration.cli.one_batch import document, text
from orchestration.cli.settings import settings_at_hand
from orchestration.ledger.attempts import attempts_of
from orchestration.ledger.batches import (
    read_batch,
    waiting_for_a_file,
    waiting_for_a_person,
)
from orchestration.ledger.connection import open_ledger
from orchestration.settings import Settings


@click.command()
@click.argument("batch_id", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def batch(batch_id: str | None, as_json: bool) -> None:
    """Run one micro-batch now: finish what was begun, then drain the topics up to their ends.

    With BATCH_ID, do nothing but show that batch and every attempt at it.
    """
    settings = settings_at_hand()
    if batch_id is not None:
        ledger = open_ledger(settings.ledger)
        one = read_batch(ledger, batch_id)
        attempts = attempts_of(ledger, batch_id)
        print(json.dumps(document(one, attempts)) if as_json else text(one, attempts))
        return
    worker = worker_of(settings, lambda line: click.echo(line, err=as_json))
    held: list[BatchError] = []
    staged = stage_batches(worker, held, loads_early=True)
    load_batches(worker, held)
    done = load_dead_letters(worker, held)
    if not any(isinstance(one, KafkaAway) for one in held):  # it would be waited for once more
        tell_standing(worker)
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
    elif not done and not staged and not held:
        print("nothing to do: nothing in Kafka waits to be loaded")
        _tell_of_others(worker)
    troubles: list[BatchError] = [*held]
    for one in staged:
        if one.state is State.HELD:
            troubles.append(BatchError(f"batch {one.batch_id} is held: {one.note}"))
    for trouble in troubles:  # told last, because what can be loaded is loaded first
        raise trouble


def _tell_of_others(worker: Worker) -> None:
    """What is not loaded and is not this command's: who has it, and what goes on with it."""
    ledger, topics = worker.ledger, worker.settings.topics
    for one in waiting_for_a_person(ledger, *topics):
        print(
            f"but batch {one.batch_id} of {one.topic}, {one.arrival_date}, is {one.state} and "
            f"waits for a person, since run {one.run_id} planned it: {one.note}"
        )
    for one in waiting_for_a_file(ledger, *topics):
        print(
            f"but batch {one.batch_id} of {one.topic}, planned by run {one.run_id}, is read by "
            "`tidemark import` alone: `tidemark status` says whether one is at it"
        )


@click.command()
@click.argument("batch_id", required=False)
@click.option("--restage", is_flag=True, help="Stage a held batch again, with the code of now.")
@click.option("--all", "all_", is_flag=True, help="All batches that are failed.")
@click.option(
    "--state",
    type=click.Choice([State.FAILED.value, State.SUSPECT.value, State.GAP.value]),
    help="With --all: those in this state instead.",
)
@click.option("--code", type=int, help="With --all: only those whose last error had this code.")
@click.option("--dry-run", is_flag=True, help="With --all: only show which.")
def retry(
    batch_id: str | None,
    restage: bool,
    all_: bool,
    state: str | None,
    code: int | None,
    dry_run: bool,
) -> None:
    """Give a batch that waits for a person (gap, suspect, failed) back to the next micro-batch.

    Or --all of them: see first with --dry-run.
    """
    if (batch_id is not None) == all_ or (all_ and restage):
        raise click.UsageError("give a BATCH_ID, or --all without --restage")
    if batch_id is None:
        _retry_all(State(state or State.FAILED), code, dry_run)
        return
    if state or code is not None or dry_run:
        raise click.UsageError("--state, --code and --dry-run go with --all")
    worker = worker_of(settings_at_hand(), click.echo)
    if not restage:
        state = retry_batch(worker, batch_id)
    else:
        batch = restage_batch(worker, batch_id)
        if batch.state is State.HELD:
            raise BatchError(f"batch {batch_id} is held again: {batch.note}")
        state = batch.state
    print(f"batch {batch_id} is {state} again: the next micro-batch takes it up")


def _retry_all(state: State, code: int | None, dry_run: bool) -> None:
    worker = worker_of(settings_at_hand(), click.echo)
    found = to_retry(worker, state, code) if dry_run else retry_all(worker, state, code)
    for one in found:
        print(f"batch {one.batch_id} of {one.topic}, {one.arrival_date}, {one.state}: {one.note}")
    what = f"{len(found):,} {state} batch{'' if len(found) == 1 else 'es'}"
    if dry_run:
        print(f"dry run: {what} would be given back")
    else:
        print(f"{what} given back: the next micro-batch takes them up")


@click.command()
@click.argument("batch_id")
def release(batch_id: str) -> None:
    """Let a held batch be loaded as it was staged, rejected records and all."""
    batch = release_batch(worker_of(settings_at_hand(), click.echo), batch_id)
    assert batch.staged is not None
    balance = batch.staged.balance
    print(
        f"batch {batch_id} is {batch.state}: the next micro-batch loads {balance.ok:,} events and "
        f"{balance.rejected:,} dead letters"
    )


def worker_of(settings: Settings, say: Callable[[str], None]) -> Worker:
    """The worker of a command."""
    ledger = open_ledger(settings.ledger)
    return Worker(settings, ledger, f"cli-{uuid.uuid4()}", say, insists=True)
