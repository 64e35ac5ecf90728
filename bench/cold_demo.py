"""The first five minutes of a stranger: clone, `make setup`, `make demo`, on an empty account.

    git clone of HEAD ─▶ empty HOME, caches and temporary folder ─▶ make setup ─▶ make demo
                                                                   seconds       seconds, exit code
    ─▶ what the network brought, what the caches hold ─▶ nothing left running ─▶ all deleted

Invariant: every process that the two commands start carries a mark in its environment. What
carries it after the demo has ended is a fault of the demo, is named, and is stopped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from bench import options
from bench.children import REPOSITORY, Deadline
from bench.errors import BenchFailed, run_command
from bench.figures import table, write_json
from bench.parts import temporary_home
from bench.usage import require_proc
from local_stack.process_table import has_in_environment, processes

_MARK = "TIDEMARK_BENCH_MARK"
_GONE_LIMIT_S = 10.0
_POLL_PAUSE_S = 0.1
_LAST_LINES = 20
_MEGABYTE = 1e6
_DROPPED = ("TIDEMARK_", "DAGSTER_", "XDG_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHON")
_DROPPED_OF_PIP = ("PIP_CACHE_DIR", "PIP_NO_CACHE_DIR")


@click.command()
@click.option(
    "--python",
    default=getattr(sys, "_base_executable", sys.executable),
    show_default="this one",
    help="Interpreter that makes the virtual environment.",
)
@click.option("--events", default=10_000, show_default=True, help="Events of the demo.")
@options.limit(900.0)
@options.json_file
def main(python: str, events: int, limit: float, json_file: Path | None) -> None:
    """Measure set-up and demo from nothing but a clone of HEAD; needs the network."""
    require_proc()
    facts, console = options.introduced()
    deadline = Deadline(limit)
    with temporary_home() as home:
        clone, env = home / "tidemark", _empty_account(home)
        mark = env[_MARK]
        commit = _clone(clone, env, home, deadline)
        console.print(f"commit {commit}; what is not committed is not in it", highlight=False)
        try:
            make = ["make", f"PYTHON={python}"]
            received = [_received_mb()]
            setup_s = _run([*make, "setup"], clone, env, home, deadline)
            received.append(_received_mb())
            console.print(f"  make setup {setup_s:6.1f} s", highlight=False)
            demo_s = _run([*make, "demo", f"EVENTS={events}"], clone, env, home, deadline)
            console.print(f"  make demo  {demo_s:6.1f} s", highlight=False)
            received.append(_received_mb())
            left = _left_running(mark)
        finally:
            _stop_marked(mark)
        if left:
            raise BenchFailed(f"the demo left something running: {', '.join(left)}")
        cache = Path(env["XDG_CACHE_HOME"])
        figures = {
            "setup_s": setup_s,
            "demo_s": demo_s,
            "setup_received_mb": received[1] - received[0],
            "demo_received_mb": received[2] - received[1],
            "pip_cache_mb": _megabytes(cache / "pip"),
            "jar_cache_mb": _megabytes(cache / "tidemark"),
            "venv_mb": _megabytes(clone / ".venv"),
        }
    _show(console, figures, events)
    write_json(
        json_file,
        {"benchmark": "cold_demo", "machine": facts, "commit": commit, "summary": figures},
    )


def _empty_account(home: Path) -> dict[str, str]:
    """The environment of somebody who has just logged in for the first time.

    How packages are reached (proxies, certificates, pip's index) is the machine's and is kept.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_DROPPED) and name not in _DROPPED_OF_PIP
    }
    user = home / "home"
    folders = {
        "HOME": user,
        "XDG_CACHE_HOME": user / ".cache",
        "XDG_CONFIG_HOME": user / ".config",
        "XDG_DATA_HOME": user / ".local" / "share",
        "XDG_STATE_HOME": user / ".local" / "state",
        "TMPDIR": home / "tmp",
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return env | {name: str(folder) for name, folder in folders.items()} | {_MARK: uuid.uuid4().hex}


def _clone(clone: Path, env: Mapping[str, str], home: Path, deadline: Deadline) -> str:
    """Clone HEAD as it would come over a network; gives the short name of the commit."""
    source = REPOSITORY.as_uri()
    _run(["git", "clone", "--quiet", "--depth", "1", source, str(clone)], home, env, home, deadline)
    told = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
    return subprocess.run(told, env=env, capture_output=True, text=True, check=True).stdout.strip()


def _run(
    command: Sequence[str], folder: Path, env: Mapping[str, str], home: Path, deadline: Deadline
) -> float:
    """Seconds that the command took. Raises BenchFailed, with its last lines, when it fails."""
    log = home / "output.log"
    begun = time.monotonic()
    with log.open("wb") as output:
        # In a session of its own, so that a Ctrl-C here ends it once, through `_stop_marked`.
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(deadline.left_s())
        except subprocess.TimeoutExpired:
            code = None
    if code:
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        raise BenchFailed(f"{' '.join(command)} ended with exit code {code}:\n" + "\n".join(lines))
    if code is None:
        deadline.left_s()
    return time.monotonic() - begun


def _marked(mark: str) -> dict[int, str]:
    """Pid and name of every process that carries the mark."""
    found = {}
    for pid in processes():
        if has_in_environment(pid, f"{_MARK}={mark}"):
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


def _left_running(mark: str) -> list[str]:
    """What is still there when what was ending has had time to end."""
    end = time.monotonic() + _GONE_LIMIT_S
    while (left := _marked(mark)) and time.monotonic() < end:
        time.sleep(_POLL_PAUSE_S)
    return [f"{name} (pid {pid})" for pid, name in left.items()]


def _stop_marked(mark: str) -> None:
    """End what carries the mark, and wait: its folder is about to be deleted."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in _marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        _left_running(mark)


def _received_mb() -> float:
    """What the network has brought to this machine since it booted, loopback left out.

    Of the whole machine, or container; but pip's cache is no better measure, for it stays empty
    where the index forbids keeping.
    """
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    counters = (line.partition(":") for line in lines)
    return sum(int(c.split()[0]) for name, _, c in counters if name.strip() != "lo") / _MEGABYTE


def _megabytes(folder: Path) -> float:
    """Bytes of the files below a folder, in millions; links are not followed."""
    return (
        sum(
            path.lstat().st_size
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        )
        / _MEGABYTE
    )


def _show(console: Console, figures: Mapping[str, float], events: int) -> None:
    made = table("From a clone to a proved demo", "", "seconds", "MB received", "MB on disk")
    rows = (
        ("make setup", "setup_s", "setup_received_mb", "venv_mb"),
        (f"make demo, {events:,} events", "demo_s", "demo_received_mb", "jar_cache_mb"),
    )
    for title, *names in rows:
        seconds, received, on_disk = (figures[name] for name in names)
        made.add_row(title, f"{seconds:.1f}", f"{received:.0f}", f"{on_disk:.0f}")
    both = figures["setup_received_mb"] + figures["demo_received_mb"]
    made.add_section()
    made.add_row("both", f"{figures['setup_s'] + figures['demo_s']:.1f}", f"{both:.0f}", "")
    console.print(made)
    console.print(
        "Exit code 0; nothing was left running; all of it is deleted. On disk stand .venv and "
        f"Kafka's jars; pip's cache held {figures['pip_cache_mb']:.0f} MB.",
        highlight=False,
    )


if __name__ == "__main__":
    run_command(main, "bench.cold_demo")
