"""For how long one large request holds up all others of a worker of the capture API.

    a body ─▶ the capture API with a heartbeat on its event loop (beating.py), a real Kafka
           ─▶ the longest stall, the time until the answer, the processor time

The answer's status is shown, not judged: some of the bodies are there to be refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
from rich.console import Console
from rich.table import Table

from bench.beating import PATH
from bench.children import REPOSITORY, Deadline
from bench.errors import BenchFailed, run_command
from bench.figures import describe, machine, spread, write_json
from bench.parts import bench_settings, local_kafka, temporary_home
from bench.stalls_bodies import Body, bodies
from bench.usage import require_proc, usage_of
from local_stack.kafka.topics import ensure_topic
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project
from orchestration.settings import Settings

_START_LIMIT_S = 30.0
_REST_S = 0.3
_TOPIC = {"segment.bytes": str(64 << 20), "retention.bytes": str(256 << 20)}


@click.command()
@click.option("--only", default="", help="Only bodies with this in their name.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--limit", default=900.0, show_default=True, help="Seconds until it is given up.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this file."
)
def main(only: str, repeat: int, limit: float, json_file: Path | None) -> None:
    """Measure how long a large request holds up the others, on a real Kafka."""
    require_proc()
    facts = machine()
    console = Console()
    console.print(describe(facts), highlight=False)
    deadline = Deadline(limit)
    table = Table("body", "answer", "longest stall, ms", "answered after, ms", "CPU, ms")
    found = []
    with temporary_home() as home, local_kafka(home) as kafka:
        settings = bench_settings(
            home / "capture",
            kafka_bootstrap_servers=kafka.settings.bootstrap_servers,
            topic="bench_stalls",
        )
        for topic in settings.topics:
            ensure_topic(settings.bootstrap_servers, topic, 8, _TOPIC)
        token = create_project(open_ledger(settings.ledger), "benchmark").token
        with _server(settings, home / "capture.log") as (client, pid):
            for body in bodies(token):
                if only in body.name:
                    runs = [_measured(client, pid, body) for _ in range(repeat)]
                    deadline.left_s()
                    statuses = sorted({str(run["status"]) for run in runs})
                    figures = [
                        spread(run[name] for run in runs).show(0)
                        for name in ("stall_ms", "answer_ms", "cpu_ms")
                    ]
                    table.add_row(body.name, ", ".join(statuses), *figures)
                    found.append({"body": body.name, "bytes": len(body.content), "runs": runs})
    console.print(table)
    if json_file is not None:
        write_json(json_file, {"machine": facts, "bodies": found})


@contextmanager
def _server(settings: Settings, log: Path) -> Iterator[tuple[httpx.Client, int]]:
    """The capture API with its heartbeat: a client of it, and its pid."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TIDEMARK_")},
        "TIDEMARK_HOME": str(settings.home),
        "TIDEMARK_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TIDEMARK_TOPIC": settings.topic,
    }
    command = [sys.executable, "-m", "bench.beating", "--port", str(settings.capture_port)]
    with (
        log.open("wb") as said,
        httpx.Client(base_url=settings.capture_address, timeout=60) as client,
        subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=said) as process,
    ):
        try:
            end = time.monotonic() + _START_LIMIT_S
            while not _is_ready(client):
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchFailed(f"the capture API does not start: {log.read_text()[-500:]}")
                time.sleep(0.1)
            yield client, process.pid
        finally:
            process.terminate()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/_readiness").status_code == 200
    except httpx.TransportError:
        return False


def _measured(client: httpx.Client, pid: int, body: Body) -> dict[str, float]:
    """One request, sent when all before it is done with."""
    time.sleep(_REST_S)
    for _ in range(2):
        client.get(PATH)
    before = usage_of(pid).cpu_s
    started = time.perf_counter()
    answer = client.post(body.path, content=body.content, headers=body.headers)
    answer_ms = (time.perf_counter() - started) * 1000
    time.sleep(_REST_S)
    return {
        "status": answer.status_code,
        "stall_ms": float(client.get(PATH).text),
        "answer_ms": answer_ms,
        "cpu_ms": (usage_of(pid).cpu_s - before) * 1000,
    }


if __name__ == "__main__":
    run_command(main, "bench.stalls")
