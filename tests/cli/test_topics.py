"""`tidemark status`, `batch` and `retry` over the main topic and those beside it."""

from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import CliRunner, Result

from assets.pipeline.errors import BatchError, LogTruncated
from orchestration.cli import tidemark
from orchestration.ledger.tables import lanes
from tests.records import delete_before, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]


def run(stack: Stack, *arguments: str) -> Result:
    """The command, as it is typed."""
    return CliRunner().invoke(tidemark, arguments, env=stack.settings.environment())


def test_status_tells_of_every_topic(new_stack: NewStack) -> None:
    """Lanes and lag of each, their sum, and topics that nobody has made."""
    stack = new_stack().make_topic(2)
    main, historical, overflow = stack.settings.topics
    stack._make(overflow, 1, {})
    stack.send_numbers(range(4), 2)
    stack.send(value_of(10), topic=overflow)
    seen = json.loads(run(stack, "status", "--json").stdout)
    assert seen["lag"] == 5
    missing = "not in Kafka, there is nothing of it to read"
    told = [
        {name: topic[name] for name in ("topic", "lanes", "lag", "note")}
        for topic in seen["topics"]
    ]
    assert told == [
        {"topic": main, "lanes": 2, "lag": 4, "note": ""},
        {"topic": overflow, "lanes": 1, "lag": 1, "note": ""},
        {"topic": historical, "lanes": 0, "lag": None, "note": missing},
    ]
    shown = run(stack, "status").stdout
    assert f"topic     {main}: 2 lanes, 4 records not planned" in shown
    assert f"topic     {historical}: {missing}" in shown
    assert "lag       5 records not planned yet" in shown


def test_a_batch_of_each_topic_is_printed_and_trouble_comes_last(new_stack: NewStack) -> None:
    """`batch` loads what can be loaded before it fails for a topic that cannot be read on."""
    stack = new_stack().make_topics()
    main, historical, overflow = stack.settings.topics
    for number, topic in enumerate(stack.settings.topics):
        stack.send(value_of(number), topic=topic)
    printed = json.loads(run(stack, "batch", "--json").stdout)
    assert [(batch["topic"], batch["state"], batch["ok"]) for batch in printed] == [
        (topic, "committed", 1) for topic in (main, overflow, historical)
    ]
    with stack.ledger.begin() as connection:
        connection.execute(lanes.update().where(lanes.c.topic == overflow).values(planned_end=9))
    stack.send(value_of(20))
    result = run(stack, "batch", "--json")
    assert isinstance(result.exception, LogTruncated)
    assert [batch["topic"] for batch in json.loads(result.stdout)] == [main]
    [told] = [
        topic
        for topic in json.loads(run(stack, "status", "--json").stdout)["topics"]
        if topic["note"]
    ]
    assert (told["topic"], told["lag"]) == (overflow, None)
    assert "is planned up to 9" in told["note"]


def test_a_gap_beside_the_main_topic_is_named_and_accepted(new_stack: NewStack) -> None:
    """`status` names the batch with its topic; `gaps accept` lets it go on, and keeps why."""
    stack = new_stack().make_topics()
    historical = stack.settings.historical_topic
    stack.send(*map(value_of, range(4)), topic=historical)
    stack.run()
    stack.send(*map(value_of, range(10, 14)), topic=historical)
    delete_before(stack.kafka, historical, {0: 6})
    assert run(stack, "batch").exit_code == 1
    [waiting] = json.loads(run(stack, "status", "--json").stdout)["waiting_for_a_person"]
    assert (waiting["topic"], waiting["state"]) == (historical, "gap")
    assert "2 offsets, 0:[4,6)" in run(stack, "gaps").stdout
    assert run(stack, "gaps", "accept", "1").exit_code == 2  # not without a reason
    assert run(stack, "gaps", "accept", "1", "--why", "a long weekend").exit_code == 0
    assert isinstance(run(stack, "gaps", "refuse", "1", "--why", "no").exception, BatchError)
    assert run(stack, "batch").exit_code == 0
    [gap] = json.loads(run(stack, "gaps", "--json").stdout)
    assert (gap["batch_id"], gap["decision"]) == (waiting["batch_id"], "accepted")
    assert "a long weekend" in run(stack, "gaps").stdout
    assert sorted(stack.account_of(historical).events) == [(0, at) for at in (0, 1, 2, 3, 6, 7)]
