"""First records: one record of each lane tells when the broker appended it."""

from __future__ import annotations

from collections.abc import Callable

from assets.pipeline.first_records import appended_at
from tests.records import Sent, delete_before, value_of
from tests.stack import Stack

NewStack = Callable[..., Stack]

CREATE_TIME = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}


def test_every_lane_of_many_is_answered(new_stack: NewStack) -> None:
    """However many lanes there are and whatever else stands in them, each gives its own time."""
    stack = new_stack()
    padding = b'{"padding":"' + b"x" * 5_000 + b'"}'
    starts, times = {}, {}
    for at, topic in enumerate(stack.settings.topics):
        stack._make(topic, 8, CREATE_TIME)
        stack.send(
            *(
                Sent(value_of(number, padding), number % 8, 1_700_000_000_000 + at * 1_000 + number)
                for number in range(400)
            ),
            topic=topic,
        )
        for partition in range(8):
            starts[topic, partition] = 10 + partition
            number = (10 + partition) * 8 + partition
            times[topic, partition] = (1_700_000_000_000 + at * 1_000 + number) * 1_000
    assert appended_at(stack.settings.kafka_client, starts) == times


def test_the_end_has_no_time_and_what_is_gone_is_missing(new_stack: NewStack) -> None:
    """None where no record follows; nothing for an offset that retention has taken meanwhile."""
    stack = new_stack().make_topic(3)
    stack.send_numbers(range(9), 3)
    delete_before(stack.kafka, stack.settings.topic, {1: 2})
    name = stack.settings.topic
    found = appended_at(stack.settings.kafka_client, {(name, 0): 3, (name, 1): 0, (name, 2): 2})
    assert (name, 1) not in found
    assert found[name, 0] is None
    assert found[name, 2] is not None


def test_nothing_is_asked_where_nothing_is_to_be_known() -> None:
    """No lane costs no connection."""
    assert appended_at({}, {}) == {}
