"""`python -m local_stack.kafka --home DIR --port 9092`: this process becomes the broker.

Exit codes: 1 when it cannot start, with one line on stderr that says why; 130 after Ctrl-C
before the broker started; then the JVM's own (143 after SIGTERM).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from local_stack.kafka.broker import BrokerSettings, run_broker
from local_stack.kafka.errors import LocalKafkaError
from local_stack.kafka.jars import default_cache

DEFAULT_PORT = 9092


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and start; returns only when that fails."""
    settings = _settings(_parser().parse_args(arguments))
    try:
        run_broker(settings, say=_say)
    except LocalKafkaError as error:
        print(f"kafka: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local_stack.kafka", description="Run Apache Kafka on this machine."
    )
    parser.add_argument("--home", type=Path, required=True, help="folder that keeps all data")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="clients' port")
    parser.add_argument(
        "--controller-port",
        type=_port_or_zero,
        default=0,
        help="the controller's; 0: find a free one",
    )
    parser.add_argument(
        "--cache", type=Path, default=None, help=f"folder for the jars (default {default_cache()})"
    )
    parser.add_argument("--repository", help="address of another Maven repository, as a mirror")
    return parser


def _settings(options: argparse.Namespace) -> BrokerSettings:
    return BrokerSettings(
        home=options.home.absolute(),
        port=options.port,
        controller_port=options.controller_port,
        cache=(options.cache or default_cache()).absolute(),
        repository=options.repository,
    )


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not a port: 1 to 65535")


def _port_or_zero(text: str) -> int:
    return 0 if text == "0" else _port(text)


def _say(line: str) -> None:
    print(f"kafka: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
