"""Dagster's processes on one machine: code server, webserver, daemon.

    code server ◀─gRPC─ webserver (UI)
         ▲
         └────────gRPC─ daemon (ticks, queue, retries) ── run_forker ── runs

The code server is a process of its own, because a daemon that loads the code itself does so anew
every minute. `dagster code-server` reads the settings again when somebody presses Reload in the UI.
Runs are forked below the daemon (run_launcher.py); those that cannot be are children of the code
server. Whoever is their parent sees at once when one is killed.

The code server listens on a socket file of the home: gRPC would share a port without a word with
the code server of another stack that was started at the same moment.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from local_stack.errors import StackError
from local_stack.ports import HOST, Port
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
_PROBE_LIMIT_S = 1.0

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
    code = code_socket(settings.home)
    workspace = _write_workspace(home, code)
    env = instance_environment(settings)
    after_code = [sys.executable, "-m", "orchestration.services", str(code)]
    return [
        Service(
            name="dagster-code",
            argv=[
                *(sys.executable, "-m", "dagster", "code-server", "start"),
                *("-m", module, "-d", str(folder)),
                *("-s", str(code), "--location-name", LOCATION),
                *("--log-level", "warning"),
            ],
            ready=lambda: _listens(code),
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


def code_socket(home: Path) -> Path:
    """Where the code server of a home is to listen.

    Below the home; where that is no place for a socket (its path is too long, or the folder is one
    of another system's), in a folder of this user's own among the temporary ones.
    """
    own = Path(tempfile.gettempdir()) / f"tidemark-{os.getuid()}"
    name = blake2b(os.fsencode(home), digest_size=12).hexdigest()
    for path in (home / "run" / "code.sock", own / f"{name}.sock"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid == os.getuid() and _takes_sockets(path.parent, path.name):
            return path
    raise StackError(
        f"neither {home} nor {own} takes the code server's socket: set TIDEMARK_HOME to a folder "
        "of a local disk with a shorter path"
    )


def _takes_sockets(folder: Path, name: str) -> bool:
    """Whether a socket of a name as long as this one can be made there."""
    probe = folder / f"{name[:-1]}~"
    probe.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(str(probe))
        except OSError:
            return False
    probe.unlink()
    return True


def _write_workspace(home: Path, code: Path) -> Path:
    path = home / "workspace.yaml"
    path.write_text(
        "# Written by tidemark at every start.\n"
        "load_from:\n"
        f"  - grpc_server: {{socket: {json.dumps(str(code))}, location_name: {LOCATION}}}\n"
    )
    return path


def _listens(code: Path) -> str | None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_LIMIT_S)
        try:
            probe.connect(str(code))
        except OSError as error:
            return f"{code}: {error}"
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


def _become(code: Path, argv: list[str]) -> None:
    """Wait until the code server listens, then become the command.

    Webserver and daemon that come first would look for the code again only after a minute.
    """
    end = time.monotonic() + _CODE_LIMIT_S
    while (reason := _listens(code)) is not None:
        if time.monotonic() > end:
            sys.exit(f"the code server does not listen: {reason}")
        time.sleep(_PAUSE_S)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    _become(Path(sys.argv[1]), sys.argv[2:])
