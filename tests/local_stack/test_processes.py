"""The supervisor's promises, with small real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from local_stack import processes
from local_stack.errors import StackError
from local_stack.ports import Port, PortTaken, require_port_free
from local_stack.processes import (
    AlreadyRunning,
    Foreground,
    Service,
    ServiceFailed,
    died,
    lock_holder,
    locked,
    log_path,
    recorded,
    running,
    start,
    stop,
    stop_all,
    stop_foreground,
    wait_ready,
)
from tests.conftest import unused_port

LIMIT_S = 30.0

IDLE = "import signal\nprint('up', flush=True)\nsignal.pause()"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + IDLE
# A leader with a child in its group; both say their pid.
PARENT = (
    "import os, subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    "print('child', child.pid, flush=True)\n" + IDLE
)
LISTENER = (
    "import socket, sys\nserver = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n" + IDLE
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A stack's home; whatever a test leaves running in it is stopped."""
    yield tmp_path
    stop_all(tmp_path, limit_s=0)


def says(home: Path, name: str, word: str) -> Callable[[], str | None]:
    """A readiness probe: the log has the word."""

    def probe() -> str | None:
        text = log_path(home, name).read_text()
        return None if word in text else f"{word!r} is not in the log"

    return probe


def service(home: Path, code: str, *arguments: str, name: str = "part") -> Service:
    """A service that runs some Python and is ready once it has said "up"."""
    argv = [sys.executable, "-c", code, *arguments]
    return Service(name, argv, says(home, name, "up"))


def launch(home: Path, code: str, *arguments: str, name: str = "part") -> processes.Record:
    """Start such a service and wait until it is ready."""
    made = service(home, code, *arguments, name=name)
    record = start(made, home)
    wait_ready(made, home, LIMIT_S)
    return record


def eventually(condition: Callable[[], object], what: str) -> None:
    """Await a condition; fail with a sentence when it never comes."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """No such process, or only its zombie."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def child_pid(home: Path) -> int:
    """The pid that PARENT's child has."""
    words = log_path(home, "part").read_text().split()
    return int(words[words.index("child") + 1])


def script(home: Path, body: str) -> subprocess.Popen[str]:
    """Run a starter: a Python process that uses the supervisor as the command line does."""
    head = f"""
        import os, signal, sys, time
        from pathlib import Path
        from local_stack.processes import *
        home = Path({str(home)!r})
        def idle(name):
            code = {IDLE!r}
            log = log_path(home, name)
            return Service(name, [sys.executable, '-c', code],
                           lambda: None if 'up' in log.read_text() else 'not up')
        def start_ready(*services):
            for service in services:
                start(service, home)
            for service in services:
                wait_ready(service, home, 30)
        def launch_ready(stack, *services):
            for service in services:
                stack.launch(service)
            for service in services:
                stack.wait_ready(service, 30)
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # The tests themselves may run under nohup, which would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def test_a_service_survives_its_starters_exit(home: Path) -> None:
    """What `up --detach` started runs on, is listed, and can be stopped by another process."""
    starter = script(home, "start_ready(idle('one'), idle('two'))")
    output, _ = starter.communicate(timeout=LIMIT_S)
    assert (starter.returncode, output) == (0, "")
    records = running(home)
    assert [record.name for record in records] == ["one", "two"]
    assert stop_all(home) == {"one": "stopped", "two": "stopped"}
    assert all(is_gone(record.pid) for record in records)
    assert recorded(home) == []


def test_a_service_has_its_own_session_and_no_stdin(home: Path) -> None:
    """A terminal's Ctrl-C and its closing do not reach a service."""
    record = launch(home, "import sys; print(repr(sys.stdin.read()))\n" + IDLE)
    assert os.getsid(record.pid) == os.getpgid(record.pid) == record.pid
    assert "''" in log_path(home, "part").read_text()


def test_a_service_hears_signals_that_its_starter_ignores(home: Path) -> None:
    """A starter in a shell's background has SIGINT ignored; its services have not."""
    body = """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        start_ready(idle('part'))
    """
    starter = script(home, body)
    starter.communicate(timeout=LIMIT_S)
    (record,) = running(home)
    os.kill(record.pid, signal.SIGINT)
    eventually(lambda: is_gone(record.pid), "the service heard SIGINT")
    assert stop("part", home) == "was not running"
    assert stop("part", home) == "was not running"


def test_additions_to_the_environment_reach_the_service(home: Path) -> None:
    """A service gets the starter's environment and its own additions."""
    code = "import os; print(os.environ['TIDEMARK_TEST'], 'PATH' in os.environ)\n" + IDLE
    made = replace(service(home, code), env={"TIDEMARK_TEST": "added"})
    start(made, home)
    wait_ready(made, home, LIMIT_S)
    assert "added True" in log_path(home, "part").read_text()


def test_the_record_tells_what_runs(home: Path) -> None:
    """`run/<name>.json` has pid, start time, command and port."""
    number = unused_port()
    made = replace(service(home, LISTENER, str(number)), ports=[Port(number, "SOME_PORT")])
    record = start(made, home)
    wait_ready(made, home, LIMIT_S)
    written = json.loads((home / "run" / "part.json").read_text())
    assert written["pid"] == record.pid
    assert written["born"] == record.born != ""
    assert written["argv"] == list(made.argv)
    assert written["ports"] == [number]
    assert running(home) == [record]


def test_a_death_before_readiness_is_noticed_at_once(home: Path) -> None:
    """The error has the exit code and the last lines of this start's log, not of the one before."""
    path = log_path(home, "part")
    path.parent.mkdir()
    path.write_text("from yesterday\n")
    made = service(home, "print('first'); print('disk is full'); raise SystemExit(3)")
    start(made, home)
    with pytest.raises(ServiceFailed) as caught:
        wait_ready(made, home, LIMIT_S)
    text = str(caught.value)
    assert text.startswith("part ended with exit code 3 (log: ")
    assert text.endswith("\n    first\n    disk is full")
    assert "yesterday" not in text
    assert running(home) == []


def test_a_service_that_is_never_ready_is_told_with_the_reason(home: Path) -> None:
    """When the limit is reached, the error has the probe's last reason."""
    made = replace(service(home, IDLE), ready=lambda: "no controller yet")
    start(made, home)
    with pytest.raises(ServiceFailed, match=r"part is not ready after 0 s: no controller yet"):
        wait_ready(made, home, 0)


def test_a_service_is_not_started_twice(home: Path) -> None:
    """The second start names what runs."""
    record = launch(home, IDLE)
    with pytest.raises(AlreadyRunning, match=rf"part runs already \(pid {record.pid}"):
        start(service(home, IDLE), home)
    assert running(home) == [record]


def test_stop_reaches_the_services_children(home: Path) -> None:
    """No process of the group outlives the service."""
    record = launch(home, PARENT)
    child = child_pid(home)
    assert stop("part", home) == "stopped"
    assert is_gone(record.pid)
    assert is_gone(child)


def test_a_service_that_ignores_sigterm_is_killed(home: Path) -> None:
    """After the limit comes SIGKILL, and the outcome says so."""
    record = launch(home, STUBBORN)
    assert stop("part", home, limit_s=0.2) == "killed"
    assert is_gone(record.pid)


def test_a_recycled_pid_is_never_killed(home: Path) -> None:
    """A record whose pid now belongs to another process stops nothing."""
    stranger = subprocess.Popen([sys.executable, "-c", IDLE], stdout=subprocess.PIPE)
    assert stranger.stdout is not None
    stranger.stdout.readline()
    record = launch(home, IDLE)
    stop("part", home)
    path = home / "run" / "part.json"
    path.write_text(json.dumps({**record.__dict__, "pid": stranger.pid}))
    assert running(home) == []
    assert stop("part", home) == "was not running"
    assert stranger.poll() is None
    stranger.kill()
    stranger.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not show an environment")
def test_orphans_of_a_crashed_service_are_stopped(home: Path) -> None:
    """A leader killed with -9 leaves its children; stopping the service stops them."""
    record = launch(home, PARENT)
    child = child_pid(home)
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: running(home) == [], "the leader died")
    assert not is_gone(child)
    assert stop("part", home) == "stopped"
    assert is_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not show an environment")
def test_a_start_after_a_crash_clears_what_holds_the_port(home: Path) -> None:
    """An orphan that still listens does not make the next start fail."""
    number = unused_port()
    code = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {LISTENER!r}, sys.argv[1]])\n"
        "import signal; signal.pause()"
    )
    made = replace(service(home, code, str(number)), ports=[Port(number, "SOME_PORT")])
    first = start(made, home)
    wait_ready(made, home, LIMIT_S)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: running(home) == [], "the leader died")
    with pytest.raises(PortTaken):
        require_port_free(number, "SOME_PORT")
    second = start(made, home)
    assert running(home) == [second]


@pytest.mark.skipif(sys.platform != "linux", reason="a thread cannot outlive the main one there")
def test_a_dying_service_is_waited_for(home: Path) -> None:
    """A killed JVM's main thread ends before those that hold its port: it is not gone yet."""
    number = unused_port()
    code = (
        "import ctypes, socket, sys, threading, time\n"
        "server = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print('up', flush=True)\n"
        "ctypes.PyDLL(None).pthread_exit(None)"
    )
    made = replace(service(home, code, str(number)), ports=[Port(number, "SOME_PORT")])
    dying = start(made, home)
    process = psutil.Process(dying.pid)
    eventually(lambda: process.status() == psutil.STATUS_ZOMBIE, "the main thread ended")
    assert running(home) == []
    with pytest.raises(PortTaken):
        require_port_free(number, "SOME_PORT")
    assert stop("part", home) == "stopped"
    require_port_free(number, "SOME_PORT")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not show an environment")
def test_a_start_that_was_cut_short_can_be_stopped(home: Path) -> None:
    """A record without a pid, as a killed starter leaves it, still finds the process."""
    record = launch(home, IDLE)
    path = home / "run" / "part.json"
    path.write_text(json.dumps({**record.__dict__, "pid": 0, "born": ""}))
    assert stop("part", home) == "stopped"
    assert is_gone(record.pid)


def test_a_service_does_not_start_on_a_taken_port(home: Path) -> None:
    """PortTaken comes before any process is started, and nothing is recorded."""
    number = unused_port()
    launch(home, LISTENER, str(number))
    other = replace(service(home, IDLE, name="other"), ports=[Port(number, "SOME_PORT")])
    with pytest.raises(PortTaken, match="SOME_PORT"):
        start(other, home)
    assert [record.name for record in recorded(home)] == ["part"]


def test_all_or_nothing_is_started(home: Path) -> None:
    """When one service fails, those that were started before it are stopped again."""

    def start_both() -> None:
        with Foreground(home) as stack:
            good = service(home, IDLE, name="good")
            stack.launch(good)
            stack.wait_ready(good, LIMIT_S)
            bad = service(home, "raise SystemExit('no licence')", name="bad")
            stack.launch(bad)
            stack.wait_ready(bad, LIMIT_S)

    with pytest.raises(ServiceFailed, match="no licence"):
        start_both()
    assert recorded(home) == []


def test_services_start_side_by_side(home: Path) -> None:
    """A service that becomes ready only with the help of a later one does, if both are launched."""
    needs = (
        "import sys, pathlib, time\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n" + IDLE
    )
    helps = "import sys, pathlib; pathlib.Path(sys.argv[1]).touch()\n" + IDLE
    path = str(home / "help")
    with Foreground(home) as stack:
        first = service(home, needs, path, name="first")
        second = service(home, helps, path, name="second")
        records = [stack.launch(first), stack.launch(second)]
        stack.wait_ready(first, LIMIT_S)
        stack.wait_ready(second, LIMIT_S)
        assert running(home) == records
    assert recorded(home) == []


def test_a_death_is_told_while_another_service_is_awaited(home: Path) -> None:
    """Of services that start side by side, the one that died is named, not the slow one."""

    def start_both() -> None:
        with Foreground(home) as stack:
            slow = replace(service(home, IDLE, name="slow"), ready=lambda: "fetches jars")
            stack.launch(slow)
            stack.launch(service(home, "raise SystemExit('no licence')", name="bad"))
            stack.wait_ready(slow, LIMIT_S)

    with pytest.raises(ServiceFailed, match=r"^bad ended with exit code 1(?s:.*)no licence$"):
        start_both()
    assert recorded(home) == []


def test_what_ran_before_is_left_alone_when_a_start_fails(home: Path) -> None:
    """A second `up` that finds a service running neither restarts nor stops it."""
    record = launch(home, IDLE, name="one")
    with pytest.raises(AlreadyRunning), Foreground(home) as stack:
        stack.launch(service(home, IDLE, name="one"))
    assert running(home) == [record]


def test_a_long_log_is_set_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log beyond its limit is renamed at the next start, and one generation is kept."""
    monkeypatch.setattr(processes, "LOG_LIMIT_BYTES", 10)
    path = log_path(home, "part")
    path.parent.mkdir()
    path.write_text("a long story from yesterday")
    launch(home, IDLE)
    assert path.with_suffix(".log.1").read_text() == "a long story from yesterday"
    assert path.read_text() == "up\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_foreground_stack_ends_with_its_starter(home: Path, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM or a closed terminal stop all services before the starter ends."""
    body = """
        with Foreground(home) as stack:
            launch_ready(stack, idle('one'), idle('two'))
            print('ready', flush=True)
            stack.wait()
    """
    starter = script(home, body)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "ready\n"
    records = running(home)
    assert [record.name for record in records] == ["one", "two"]
    holder = lock_holder(home)
    assert holder is not None
    assert (holder.pid, holder.foreground) == (starter.pid, True)
    starter.send_signal(number)
    output, _ = starter.communicate(timeout=LIMIT_S)
    assert (starter.returncode, output) == (128 + number, "")
    assert all(is_gone(record.pid) for record in records)
    assert recorded(home) == []
    assert lock_holder(home) is None


def test_a_signal_while_a_service_starts_leaves_nothing_behind(home: Path) -> None:
    """Ctrl-C before readiness stops what is half started."""
    body = """
        never = Service('slow', [sys.executable, '-c', 'import signal; signal.pause()'],
                        lambda: 'not yet')
        with Foreground(home) as stack:
            launch_ready(stack, idle('one'), never)
    """
    starter = script(home, body)
    eventually(lambda: len(running(home)) == 2, "both processes run")
    records = running(home)
    starter.send_signal(signal.SIGINT)
    starter.communicate(timeout=LIMIT_S)
    assert starter.returncode == 128 + signal.SIGINT
    assert all(is_gone(record.pid) for record in records)
    assert recorded(home) == []


def test_a_foreground_stack_ends_when_a_service_dies(home: Path) -> None:
    """The death of one part is told with its log, and the others are stopped."""

    def run_until_a_death() -> None:
        with Foreground(home) as stack:
            made = [service(home, IDLE, name=name) for name in ("one", "two")]
            record, _ = [stack.launch(each) for each in made]
            for each in made:
                stack.wait_ready(each, LIMIT_S)
            os.kill(record.pid, signal.SIGKILL)
            stack.wait()

    with pytest.raises(ServiceFailed, match=r"(?s)^one ended by signal 9 .*up$"):
        run_until_a_death()
    assert recorded(home) == []


def test_a_killed_foreground_stack_can_be_cleared(home: Path) -> None:
    """kill -9 of the starter: its services are still recorded and can be stopped."""
    body = """
        with Foreground(home, 'demo') as stack:
            launch_ready(stack, idle('one'))
            print('ready', flush=True)
            stack.wait()
    """
    starter = script(home, body)
    assert starter.stdout is not None
    starter.stdout.readline()
    starter.kill()
    starter.communicate()
    assert [record.name for record in running(home)] == ["one"]
    with locked(home):
        assert stop_all(home) == {"one": "stopped"}


def test_a_foreground_stack_can_be_stopped_by_another_command(home: Path) -> None:
    """`down` ends the process that holds the home; its services are gone when that returns."""
    body = """
        with Foreground(home, 'tidemark up') as stack:
            launch_ready(stack, idle('one'), idle('two'))
            print('ready', flush=True)
            stack.wait()
    """
    starter = script(home, body)
    assert starter.stdout is not None
    starter.stdout.readline()
    records = running(home)
    assert len(records) == 2
    ended = stop_foreground(home)
    assert str(ended) == f"tidemark up (pid {starter.pid})"
    assert all(is_gone(record.pid) for record in records)
    assert recorded(home) == []
    starter.communicate(timeout=LIMIT_S)
    assert starter.returncode == 128 + signal.SIGTERM
    with locked(home):
        assert stop_foreground(home) is None  # this test is no Foreground
    assert stop_foreground(home) is None


def test_a_foreground_stack_that_does_not_end_is_told(home: Path) -> None:
    """The line names the process and says what to do; nothing is killed."""
    body = """
        with Foreground(home, 'tidemark up'):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print('ready', flush=True)
            while True:
                signal.pause()
    """
    starter = script(home, body)
    assert starter.stdout is not None
    starter.stdout.readline()
    with pytest.raises(StackError, match=rf"\(pid {starter.pid}\) does not end: `kill -9"):
        stop_foreground(home, limit_s=0.2)
    assert starter.poll() is None
    starter.kill()
    starter.communicate()


@pytest.mark.parametrize("left", ["dead", "recycled", "cut short"])
def test_a_lock_whose_text_is_of_another_time_ends_nobody(home: Path, left: str) -> None:
    """Between taking the lock and writing to it, what a killed holder left is not believed."""
    stranger = subprocess.Popen([sys.executable, "-c", IDLE], stdout=subprocess.PIPE)
    assert stranger.stdout is not None
    stranger.stdout.readline()
    pid = stranger.pid if left == "recycled" else 2**22 + 1
    text = json.dumps({"purpose": "up", "pid": pid, "born": "then", "foreground": True})
    with locked(home):
        (home / "run" / "stack.lock").write_text(text[:-10] if left == "cut short" else text)
        assert lock_holder(home) is None
        assert stop_foreground(home) is None
    assert stranger.poll() is None
    stranger.kill()
    stranger.communicate()


def test_one_command_at_a_time_works_on_a_home(home: Path) -> None:
    """The second one is told who works there and what runs already."""
    launch(home, IDLE, name="one")
    with locked(home, "tidemark up"):
        holder = lock_holder(home)
        assert holder is not None
        assert (holder.pid, holder.foreground) == (os.getpid(), False)
        words = rf"tidemark up \(pid {os.getpid()}\) works on .* \(running: one\)"
        with pytest.raises(AlreadyRunning, match=words), locked(home, "tidemark down"):
            pass
    with locked(home):
        pass
    assert lock_holder(home) is None


def test_of_two_concurrent_starts_one_wins(home: Path) -> None:
    """Two `up` at the same time: one starts the service, the other says what is there."""
    body = """
        try:
            with locked(home, 'up'):
                start_ready(idle('one'))
                print('started')
        except AlreadyRunning as error:
            print(error)
    """
    starters = [script(home, body), script(home, body)]
    outputs = sorted(starter.communicate(timeout=LIMIT_S)[0] for starter in starters)
    assert "started\n" in outputs
    outputs.remove("started\n")
    assert "works on" in outputs[0] or "runs already" in outputs[0]
    assert len(running(home)) == 1


def test_a_service_that_died_is_told_apart(home: Path) -> None:
    """A service that was killed is among the dead until it is stopped; one that lives is not."""
    launch(home, IDLE, name="lives")
    dead = launch(home, IDLE, name="dies")
    assert died(home) == []
    os.kill(dead.pid, signal.SIGKILL)
    eventually(lambda: is_gone(dead.pid), "the killed service goes")
    assert [record.name for record in died(home)] == ["dies"]
    stop("dies", home)
    assert died(home) == []


def test_a_lock_that_was_moved_away_holds_nothing(home: Path) -> None:
    """Who waits for a home that its holder removes does not believe to hold the new one."""
    own = home / "own"
    outcomes: list[str] = []

    def wait_for_it() -> None:
        try:
            with locked(own, "second"):
                outcomes.append("held")
        except AlreadyRunning as error:
            outcomes.append(str(error))

    with locked(own, "first"):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        moved = home / "moved"
        eventually(lambda: _opened_by_two(own), "the second opens the lock")
        own.rename(moved)
    waiting.join()
    assert len(outcomes) == 1
    assert "removed" in outcomes[0]


def _opened_by_two(home: Path) -> bool:
    lock = str(home / "run" / "stack.lock")
    opened = [str(file.path) for file in psutil.Process().open_files()]
    return opened.count(lock) == 2
