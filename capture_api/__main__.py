"""`python -m capture_api`: serve the capture API until SIGTERM or SIGINT.

On a signal it stops accepting, finishes the requests it has, and flushes the producer. With
several workers (TIDEMARK_CAPTURE_WORKERS) a supervisor holds the port and starts them anew when
they die; SIGHUP restarts them one by one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import uvicorn
from confluent_kafka import KafkaException
from pydantic import ValidationError
from pydantic_settings import SettingsError

from capture_api.app import CaptureApp, create_app
from capture_api.exposition import new_folder
from capture_api.garbage import use_few_arenas
from capture_api.kafka.configuration import try_configuration
from capture_api.logs import start_logging
from capture_api.scripts import check_scripts_dir
from capture_api.turns import PATIENCE_SECONDS
from capture_api.wire.connections import Sweep, connection_limits
from capture_api.wire.http_protocol import BoundedHttpProtocol
from orchestration.settings import Settings
from orchestration.settings_in_force import settings_but_cadence
from orchestration.settings_trouble import sentences

GRACE_SECONDS = 2


def main() -> int:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m capture_api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on (TIDEMARK_CAPTURE_PORT)")
    arguments = parser.parse_args()
    if arguments.port is not None:
        # Workers read the settings anew, and find each other by their port.
        os.environ["TIDEMARK_CAPTURE_PORT"] = str(arguments.port)
    try:
        found = settings_but_cadence()
        settings = found.settings
        if found.trouble:
            print(f"capture_api: {found.trouble}", file=sys.stderr)
        if (problem := _scripts_problem(settings)) is not None:
            print(
                f"capture_api: TIDEMARK_CAPTURE_SCRIPTS_DIR: {problem}; name the dist folder of "
                "posthog-js (npm pack posthog-js)",
                file=sys.stderr,
            )
            return 1
        if (problem := _spool_problem(settings)) is not None:
            print(f"capture_api: TIDEMARK_CAPTURE_SPOOL_DIR: {problem}", file=sys.stderr)
            return 1
        app = create_app(settings) if settings.capture_workers == 1 else None
        if app is None:
            try_configuration(settings)  # else its workers would die of it one after the other
    except OSError as error:
        print(f"capture_api: {error}", file=sys.stderr)
        return 1
    except (ValidationError, SettingsError, KafkaException) as error:
        print(f"capture_api: {_in_one_line(error)}", file=sys.stderr)
        return 1

    start_logging(settings.log_format)
    use_few_arenas()
    # uvicorn finishes its work and then raises the signal again: that is a good end, not a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if app is None:
        new_folder(workers_folder(settings))
    uvicorn.run(
        app or "capture_api.__main__:worker_app",
        factory=app is None,
        workers=settings.capture_workers,
        host=arguments.host,
        port=settings.capture_port,
        loop="uvloop",
        # Workers are given a copy, so it must be one that can be pickled.
        http=partial(BoundedHttpProtocol, sweep=Sweep(connection_limits(settings))),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # whom to believe about addresses: client_address.py
        server_header=False,
        backlog=2048,
        log_config=None,  # uvicorn's lines go the way of ours
        # A request waits at most for its turn, if it is long, and for Kafka's acknowledgement.
        timeout_graceful_shutdown=settings.capture_ack_timeout_ms // 1000
        + int(PATIENCE_SECONDS)
        + GRACE_SECONDS,
    )
    return 0


def worker_app() -> CaptureApp:
    """The application of one of several workers. Called in its process."""
    settings = settings_but_cadence().settings
    start_logging(settings.log_format)
    use_few_arenas()
    return create_app(settings, workers_folder(settings))


def workers_folder(settings: Settings) -> Path:
    """Where the workers of one port leave their numbers for each other."""
    return settings.home / "capture" / f"workers-{settings.capture_port}"


def _spool_problem(settings: Settings) -> OSError | None:
    """Why nothing can be written there, now rather than in an outage."""
    if settings.capture_spool_dir:
        folder = Path(settings.capture_spool_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            return error
    return None


def _scripts_problem(settings: Settings) -> OSError | None:
    """Why the folder of posthog-js cannot be served, now rather than in a page."""
    try:
        check_scripts_dir(settings)
    except OSError as error:
        return error
    return None


def _in_one_line(error: ValidationError | SettingsError | KafkaException) -> str:
    """What is wrong with the settings."""
    if isinstance(error, KafkaException):
        return (
            f"Kafka's client refuses its settings: {error.args[0].str()} "
            "(see TIDEMARK_KAFKA_OPTIONS and TIDEMARK_CAPTURE_*)"
        )
    return "; ".join(sentences(error))


if __name__ == "__main__":
    sys.exit(main())
