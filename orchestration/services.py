"""Dagster's processes on one machine: code server, webserver, daemon.

    code server ◀─gRPC─ webserver (UI)
         ▲
         └────────gRPC─ daemon (ticks, queue, retries) ── run_forker ── runs

The code server is a process of its own, because a daemon that loads the code itself does so anew
every minute. `dagster code-server` reads the settings again when somebody presses Reload in the UI.
Runs are forked below the daemon (run_launcher.py); those that cannot be are children of the code
server. Whoever is their parent sees at once when one is killed.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from local_stack.ports import HOST, Port, free_port
from local_stack.processes import Service
from orchestration.instance import (
    dagster_home,
    instance_environment,
    open_instance,
    prepare_instance,
)
from orchestration.settings import Settings
from orchestration.webserver import WebserverSilent, ask

LOCATION = "tidemark"

_REPOSITORY = Path(__file__).resolve().parent.parent
_CODE_LIMIT_S = 120.0
_PAUSE_S = 0.05

_LOADED = """
{ workspaceOrError { __typename ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""
_DAEMONS = """
{ instance { daemonHealth { allDaemonStatuses {
    daemonType required lastHeartbeatTime } } } }
"""


def dagster_services(
    settings: Settings, module: str = "orchestration.definitions", folder: Path = _REPOSITORY
) -> list[Service]:
    """The processes, with the files they read written. The daemon's probe asks the webserver.

    The code server loads the module, from the folder.
    """
    home = dagster_home(settings.home)
    prepare_instance(settings)
    with open_instance(settings):
        pass  # its tables are there: webserver and daemon would make them at the same time
    code_port = free_port(settings.dagster_port + 1)
    workspace = _write_workspace(home, code_port)
    env = instance_environment(settings)
    after_code = [sys.executable, "-m", "orchestration.services", str(code_port)]
    return [
        Service(
            name="dagster-code",
            argv=[
                *(sys.executable, "-m", "dagster", "code-server", "start"),
                *("-m", module, "-d", str(folder)),
                *("-h", HOST, "-p", str(code_port), "--location-name", LOCATION),
                *("--log-level", "warning"),
            ],
            ready=lambda: _listens(code_port),
            env=env,
            cwd=_REPOSITORY,
        ),
        Service(
            name="dagster-webserver",
            argv=[
                *after_code,
                *(sys.executable, "-m", "dagster_webserver", "-w", str(workspace)),
                *("-h", HOST, "-p", str(settings.dagster_port), "--suppress-warnings"),
                *("--log-level", "warning", "--dagster-log-level", "warning"),
            ],
            ready=lambda: _loaded(settings.dagster_address),
            env=env,
            ports=[Port(settings.dagster_port, "TIDEMARK_DAGSTER_PORT")],
            cwd=_REPOSITORY,
        ),
        Service(
            name="dagster-daemon",
            argv=[
                *after_code,
                *(sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)),
            ],
            ready=_heartbeats(settings.dagster_address),
            env=env,
            cwd=_REPOSITORY,
        ),
    ]


def _write_workspace(home: Path, code_port: int) -> Path:
    path = home / "workspace.yaml"
    path.write_text(
        "# Written by tidemark at every start.\n"
        "load_from:\n"
        f"  - grpc_server: {{host: {HOST}, port: {code_port}, location_name: {LOCATION}}}\n"
    )
    return path


def _listens(port: int) -> str | None:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError as error:
        return f"port {port}: {error}"
    return None


def _loaded(address: str) -> str | None:
    try:
        answer = ask(address, _LOADED)
    except WebserverSilent as error:
        return str(error)
    entries = answer["workspaceOrError"].get("locationEntries", [])
    if not entries:
        return "the code location is not there yet"
    loaded = entries[0]["locationOrLoadError"] or {"__typename": "nothing yet"}
    if loaded["__typename"] != "RepositoryLocation":
        return f"the code location is {loaded['__typename']}: {loaded.get('message', '')}".strip()
    return None


def _heartbeats(address: str) -> Callable[[], str | None]:
    """A probe: every daemon that Dagster wants has given a sign of life since now."""
    since = time.time()

    def probe() -> str | None:
        try:
            answer = ask(address, _DAEMONS)
        except WebserverSilent as error:
            return str(error)
        silent = [
            daemon["daemonType"].lower()
            for daemon in answer["instance"]["daemonHealth"]["allDaemonStatuses"]
            if daemon["required"] and (daemon["lastHeartbeatTime"] or 0) < since
        ]
        return f"no heartbeat yet of {', '.join(silent)}" if silent else None

    return probe


def _become(port: int, argv: list[str]) -> None:
    """Wait until the code server listens, then become the command.

    Webserver and daemon that come first would look for the code again only after a minute.
    """
    end = time.monotonic() + _CODE_LIMIT_S
    while (reason := _listens(port)) is not None:
        if time.monotonic() > end:
            sys.exit(f"the code server does not listen: {reason}")
        time.sleep(_PAUSE_S)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
