"""`python -m capture_api`: serve the capture API until SIGTERM or SIGINT.

On a signal it stops accepting, finishes the requests it has, and flushes the producer.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys

import uvicorn
from pydantic import ValidationError

from capture_api.app import create_app
from orchestration.settings import Settings

GRACE_SECONDS = 2


def main() -> int:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m capture_api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on (TIDEMARK_CAPTURE_PORT)")
    arguments = parser.parse_args()
    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        print(f"the settings make no sense: {error}", file=sys.stderr)
        return 2

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # uvicorn finishes its work and then raises the signal again: that is a good end, not a death.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    uvicorn.run(
        create_app(settings),
        host=arguments.host,
        port=settings.capture_port if arguments.port is None else arguments.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        backlog=2048,
        log_config=None,  # uvicorn's lines go the way of ours
        # A request waits at most for Kafka's acknowledgement.
        timeout_graceful_shutdown=settings.capture_ack_timeout_ms // 1000 + GRACE_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
