"""Early loads: a batch is loaded while others are staged, and load_batches has the last word."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from sqlalchemy import update

from assets.pipeline import early_loads, staging
from assets.pipeline.batch import Batch, State
from assets.pipeline.circuit import LOAD
from assets.pipeline.clickhouse import make_tables
from assets.pipeline.errors import LeaseLost, ProofFailed
from assets.pipeline.loading import load_batches
from assets.pipeline.staging import stage_batches
from assets.pipeline.worker import Worker
from orchestration.ledger.attempts import attempts_of
from orchestration.ledger.leases import Lease
from orchestration.ledger.tables import leases
from tests.stack import Stack

WAIT_S = 60.0


def nothing(stack: Stack, first: Batch) -> None:
    """All goes well."""


def a_stray_row(stack: Stack, first: Batch) -> None:
    """The table holds a row of the batch already, and not the others."""
    stack.client.command(
        f"INSERT INTO {stack.database}.events (_batch_id, arrival_date) "
        f"VALUES ('{first.batch_id}', '{first.arrival_date}')"
    )


def the_lease_is_taken(stack: Stack, first: Batch) -> None:
    """Another worker took over."""
    with stack.ledger.begin() as connection:
        taken = update(leases).values(fence=leases.c.fence + 1, expires_at=0)
        connection.execute(taken)


@pytest.mark.parametrize(
    ("happens", "staging_raises", "meanwhile", "loading_raises", "finally_"),
    [
        (nothing, None, State.LOADED, None, State.COMMITTED),
        (a_stray_row, None, State.LOADING, ProofFailed, State.SUSPECT),
        (the_lease_is_taken, LeaseLost, State.STAGED, None, State.COMMITTED),
    ],
)
def test_the_first_batch_is_loaded_while_the_last_is_staged(
    new_stack: Callable[..., Stack],
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Stack, Batch], None],
    staging_raises: type[Exception] | None,
    meanwhile: State,
    loading_raises: type[Exception] | None,
    finally_: State,
) -> None:
    """Its load is over before the last one is staged; what goes wrong is left to load_batches.

    Where it went wrong no other is tried, and each batch ends as it does without early loads.
    """
    stack = new_stack(batch_max_records=10).make_topic()
    sent = stack.send_numbers(range(30))
    make_tables(stack.client, stack.database)
    over = threading.Event()

    def stage_last_when_over(*arguments: object) -> Batch:
        if len(stack.batches()) == 3:
            assert over.wait(WAIT_S), "nothing is loaded while others are staged"
        return stage_one(*arguments)

    def load_one(worker: Worker, lease: Lease, batch: Batch) -> None:
        try:
            if not over.is_set():
                happens(stack, batch)
            load_early(worker, lease, batch)
        finally:
            over.set()

    stage_one, load_early = staging.stage_one, early_loads.load_early
    monkeypatch.setattr(staging, "stage_one", stage_last_when_over)
    monkeypatch.setattr(early_loads, "load_early", load_one)

    with pytest.raises(staging_raises) if staging_raises else nullcontext():
        stage_batches(stack.worker(), loads_early=True)
    first, second, *_ = stack.batches()
    assert first.state is meanwhile
    if meanwhile is not State.LOADED:
        assert not attempts_at_loading(stack, second)

    with pytest.raises(loading_raises) if loading_raises else nullcontext():
        stage_batches(stack.worker(), loads_early=True)
        load_batches(stack.worker())
    assert [batch.state for batch in stack.batches()] == [finally_, *[State.COMMITTED] * 2]
    if finally_ is State.COMMITTED:
        assert sorted(stack.account().events) == sorted(sent)
    else:
        assert attempts_at_loading(stack, first) == ["failed", "failed"]


def attempts_at_loading(stack: Stack, batch: Batch) -> list[str | None]:
    """How each attempt at loading a batch ended."""
    return [
        each.outcome for each in attempts_of(stack.ledger, batch.batch_id) if each.stage == LOAD
    ]
