"""Start the server: `python -m local_stack.clickhouse --data DIR --port 8123`.

Prints one line on stdout when it answers queries. SIGTERM and SIGINT let running statements finish
(for a bounded time), close the engine and end with exit code 0; what cannot start ends with one
line on stderr and exit code 1.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from local_stack.clickhouse.errors import StartError

_FINISH_S = 20
_KEEP_ALIVE_S = 60
# Each connection's engine threads keep some files open for their statistics.
_OPEN_FILES = 65536


class _Uvicorn(uvicorn.Server):
    """uvicorn, but the signals are ours: after a clean stop the exit code is 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop; the exit code."""
    options = _options(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    # An answer cut short on purpose is no fault of the application.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    try:
        return _serve(options)
    except StartError as error:
        print(f"clickhouse: {error}", file=sys.stderr)
        return 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local_stack.clickhouse",
        description="The embedded ClickHouse engine behind a loopback HTTP server.",
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the data")
    parser.add_argument("--port", type=int, default=8123, help="0 takes a free one (default: 8123)")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--user", default="default", help="the one user's name (default: default)")
    parser.add_argument(
        "--password",
        default=os.environ.get("CLICKHOUSE_PASSWORD", ""),
        help="the user's password (default: $CLICKHOUSE_PASSWORD, or none)",
    )
    return parser.parse_args(arguments)


def _serve(options: argparse.Namespace) -> int:
    # The port first: it is the cheaper of the two things that may be taken.
    with _listen(options.host, options.port) as listener:
        # Imported here, because loading the engine takes most of a second.
        from local_stack.clickhouse.engine import Engine
        from local_stack.clickhouse.server import Server, User

        _raise_open_files()
        engine = Engine(options.data)
        server = Server(engine, User(options.user, options.password))
        config = uvicorn.Config(
            server,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_FINISH_S,
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as loop:
            loop.run(_until_told(config, listener, engine.version, options.data))
        if not server.close(_FINISH_S):
            # A statement that neither ends nor can be killed; what was acknowledged is on disk.
            print("clickhouse: stopped with a statement still running", file=sys.stderr, flush=True)
            os._exit(0)
        engine.close()
        return 0


async def _until_told(
    config: uvicorn.Config, listener: socket.socket, version: str, data: Path
) -> None:
    http = _Uvicorn(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, http, "should_exit", True)
    # Connections queue on the listening socket until uvicorn takes it over, so this line does not
    # lie.
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"ClickHouse {version} ready on http://{shown}:{port}, data in {data}", flush=True)
    await http.serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    address = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise StartError(
            f"--host {host} is not a loopback address (the server is for one machine): "
            "use 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StartError(
            f"cannot listen on {host}:{port} ({reason}): give another --port"
        ) from None
    return listener


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
