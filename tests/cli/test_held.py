"""A held batch on the command line: named with its reasons, released, or staged again."""

from __future__ import annotations

import json
from collections.abc import Callable

from assets.pipeline.errors import BatchError
from tests.cli.test_topics import run
from tests.records import value_of
from tests.stack import Stack


def test_a_held_batch_is_named_until_it_is_released(new_stack: Callable[..., Stack]) -> None:
    """`batch` fails with what to do, `status` has state and reasons, `release` lets it go on."""
    stack = new_stack(hold_over_records=2).make_topic()
    stack.send(value_of(0), *[b"no json"] * 3, b"\xff")
    failed = run(stack, "batch")
    assert failed.exit_code == 1
    assert isinstance(failed.exception, BatchError)
    assert "4 of 5 records (80%) were rejected: 3 not_json, 1 not_utf8" in str(failed.exception)
    [waiting] = json.loads(run(stack, "status", "--json").stdout)["waiting_for_a_person"]
    batch_id = waiting["batch_id"]
    assert (waiting["state"], waiting["rejected"]) == ("held", {"not_json": 3, "not_utf8": 1})
    shown = run(stack, "status").stdout
    assert f"ATTENTION batch {batch_id} is held: 4 of 5 records" in shown
    assert f"`tidemark release {batch_id}`" in shown
    assert "batches   1 held" in shown

    nothing = run(stack, "batch")
    assert nothing.exit_code == 0  # it failed once, that is enough
    assert "nothing to do" in nothing.stdout
    assert f"but batch {batch_id} of {stack.settings.topic}, " in nothing.stdout
    [held] = stack.batches()
    assert f"waits for a person, since run {held.run_id} planned it: 4 of" in nothing.stdout
    again = run(stack, "retry", batch_id, "--restage")
    assert again.exit_code == 1
    assert f"batch {batch_id} is held again: 4 of 5" in str(again.exception)

    released = run(stack, "release", batch_id)
    assert released.exit_code == 0
    assert "loads 1 events and 4 dead letters" in released.stdout
    [done] = json.loads(run(stack, "batch", "--json").stdout)
    assert (done["batch_id"], done["state"], done["rejected"]) == (batch_id, "committed", 4)
    assert json.loads(run(stack, "status", "--json").stdout)["waiting_for_a_person"] == []
