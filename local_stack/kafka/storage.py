"""The broker's data folder: formatted once, whole or not at all.

Data flow: a fresh cluster id → Kafka's own StorageTool formats a staging folder → one rename makes
it the data folder. Invariant: a data folder that exists is formatted, and its cluster id, kept in
Kafka's meta.properties, never changes. A format that died leaves only a staging folder, which the
next start throws away.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from local_stack.kafka.config import DATA_FOLDER, server_properties
from local_stack.kafka.errors import HomeError

META_FILE = "meta.properties"
STAGING_PREFIX = "formatting-"
STAGING_PROPERTIES = "format.properties"
FORMAT_LIMIT_S = 120


def ensure_formatted(folder: Path, java: Sequence[str], port: int, controller_port: int) -> str:
    """Format the data folder below `folder` unless it is, and return the cluster id.

    `java` is the command line of the JVM up to the main class.
    """
    data = folder / DATA_FOLDER
    if not data.exists():
        _format(folder, java, server_properties(port, controller_port))
    try:
        return read_cluster_id(data)
    except (FileNotFoundError, KeyError) as error:
        raise HomeError(
            f"{data} is not a Kafka data folder ({META_FILE} is missing or damaged): move it away"
            " and a new one is made"
        ) from error


def read_cluster_id(data: Path) -> str:
    """The cluster id of a formatted data folder."""
    lines = (data / META_FILE).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["cluster.id"]


def _format(folder: Path, java: Sequence[str], properties: str) -> None:
    for left_over in folder.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    # A name of its own: the tool of a start that was killed may still be writing to the last one.
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
    (staging / STAGING_PROPERTIES).write_text(properties)
    tool = ["kafka.tools.StorageTool", "format", "-t", _new_cluster_id(), "-c", STAGING_PROPERTIES]
    done = subprocess.run(
        [*java, *tool],
        cwd=staging,
        env=java_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=FORMAT_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise HomeError(f"Kafka could not format {staging}: {reason_of(done.stdout)}")
    (staging / DATA_FOLDER).rename(folder / DATA_FOLDER)
    shutil.rmtree(staging, ignore_errors=True)


def java_environment() -> dict[str, str]:
    """This process's environment, but the JVM reads and writes paths of any alphabet."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def reason_of(output: str) -> str:
    """What went wrong, out of a Java tool's output: its exception, not the stack below it."""
    lines = output.strip().splitlines()
    return next((line for line in lines if "Exception" in line), " / ".join(lines[-3:])).strip()


def _new_cluster_id() -> str:
    # Kafka's own form of a UUID. It takes no id that begins with "-": a shell would see an option.
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
