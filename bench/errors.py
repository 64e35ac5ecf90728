"""What a benchmark ends with when it cannot give an honest figure, and the edge that prints it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from assets.pipeline.errors import BatchError
from local_stack.errors import StackError
from local_stack.kafka.errors import LocalKafkaError
from local_stack.kafka.topics import KafkaNotReady

EXIT_FAILED = 1


class BenchFailed(Exception):
    """No figure came of it; the text is one line that says why."""


_USER_ERRORS = (BenchFailed, BatchError, StackError, LocalKafkaError, KafkaNotReady)


def run_command(command: Callable[[], object], name: str) -> None:
    """Run a benchmark's command; what went wrong becomes one line and an exit code."""
    try:
        command()
    except _USER_ERRORS as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
