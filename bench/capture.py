"""What the capture API costs beside another server that speaks the same protocol.

    a few hundred bodies a workload ─▶ for each repeat, each workload, each server in turn: wrk
                                     ─▶ processor time an event, latency, memory; ratios to the peer

The peer is whatever capture server runs at the address given, on the same Kafka; it is measured by
its pid. A window counts only if every answer was a 200 and its topic grew by what was answered.
Ratios are taken within one repeat, since a machine that is busy with other things slows both.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench import options
from bench.capture_load import (
    WORKLOADS,
    Driven,
    Workload,
    chosen_workloads,
    drive,
    require_wrk,
    write_bodies,
)
from bench.capture_report import show, summary
from bench.capture_servers import (
    PEER,
    Server,
    TopicEnds,
    can_set_workers,
    make_topic,
    own_servers,
)
from bench.children import Deadline
from bench.errors import BenchFailed, run_command
from bench.figures import write_json
from bench.parts import local_kafka, temporary_home
from bench.usage import require_proc, resident_bytes_of, usage_of

_WARM_UP_S = 1.0


@dataclass(frozen=True)
class Window:
    """One server under one workload, once."""

    server: str
    workload: str
    repeat: int
    events: int  # answered with 200
    cpu_s: float  # of the server's processes
    resident_bytes: int  # of the largest of them, afterwards
    driven: Driven

    @property
    def cpu_us(self) -> float:
        """Processor time of one event, in µs."""
        return self.cpu_s / self.events * 1e6


@click.command()
@click.option("--peer", help="Address of the capture server to compare with; without: only ours.")
@click.option("--peer-pid", type=int, help="Its process; descendants are counted with it.")
@click.option(
    "--peer-topic", default="peer", show_default=True, help="The topic that it fills on --kafka."
)
@click.option("--kafka", help="Kafka for all servers, HOST:PORT; without: a fresh local one.")
@click.option(
    "--workers",
    default="1,2" if can_set_workers() else "1",
    show_default=True,
    help="Measure our server with so many workers; several numbers with commas between.",
)
@click.option("--workloads", default=",".join(WORKLOADS), show_default=True, help="What is sent.")
@click.option(
    "--repeat",
    default=3,
    show_default=True,
    type=click.IntRange(min=1),
    help="Windows of each server and workload, interleaved.",
)
@click.option("--seconds", default=5.0, show_default=True, help="How long a window is.")
@options.limit(900.0)
@options.json_file
def main(
    peer: str | None,
    peer_pid: int | None,
    peer_topic: str,
    kafka: str | None,
    workers: str,
    workloads: str,
    repeat: int,
    seconds: float,
    limit: float,
    json_file: Path | None,
) -> None:
    """Measure the capture API on a real Kafka, beside a peer that runs already."""
    require_proc()
    require_wrk()
    chosen = chosen_workloads(workloads)
    if peer and not (peer_pid and kafka):
        raise BenchFailed("a peer needs --peer-pid, and --kafka with the Kafka it writes to")
    facts, console = options.introduced()
    deadline = Deadline(limit)
    windows: list[Window] = []
    with ExitStack() as exits:
        home = exits.enter_context(temporary_home())
        servers_of_kafka = (
            kafka or exits.enter_context(local_kafka(home)).settings.bootstrap_servers
        )
        servers, token = exits.enter_context(own_servers(home, servers_of_kafka, _numbers(workers)))
        if peer and peer_pid:
            make_topic(servers_of_kafka, peer_topic)
            servers.append(Server(PEER, peer.rstrip("/"), peer_pid, peer_topic))
        ends = TopicEnds(servers_of_kafka)
        exits.callback(ends.close)
        for workload in chosen:
            size = write_bodies(workload, token, home / workload.name)
            console.print(f"{workload.name}: bodies of {size:,.0f} bytes", highlight=False)
            for server in servers:
                drive(workload, server.url, home / workload.name, _WARM_UP_S)
        for number in range(repeat):
            turn = number % len(servers)
            for workload in chosen:
                for server in servers[turn:] + servers[:turn]:
                    deadline.left_s()
                    bodies = home / workload.name
                    windows.append(_measure(server, workload, bodies, seconds, number, ends))
                    console.print(f"  {_told(windows[-1])}", highlight=False)
    show(console, windows)
    write_json(
        json_file,
        {
            "benchmark": "capture",
            "machine": facts,
            "settings": {"seconds": seconds, "repeat": repeat},
            "summary": summary(windows),
            "windows": [asdict(window) for window in windows],
        },
    )


def _numbers(text: str) -> list[int]:
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        raise BenchFailed(f"--workers takes numbers, not {text!r}") from None
    if found != [1] and not can_set_workers():
        raise BenchFailed("this capture API runs with one worker only")
    return found


def _measure(
    server: Server, workload: Workload, bodies: Path, seconds: float, repeat: int, ends: TopicEnds
) -> Window:
    stored, before = ends.settled_count(server.topic), usage_of(server.pid)
    driven = drive(workload, server.url, bodies, seconds)
    after = usage_of(server.pid)
    events = driven.requests * workload.events
    what = f"{server.name} under {workload.name}"
    if driven.refused or driven.broken or driven.timed_out or not events:
        raise BenchFailed(f"{what}: not every request was answered with 200: {driven}")
    _require_stored(what, events, ends.settled_count(server.topic) - stored, workload)
    ends.clear(server.topic)
    return Window(
        server=server.name,
        workload=workload.name,
        repeat=repeat,
        events=events,
        cpu_s=after.cpu_s - before.cpu_s,
        resident_bytes=resident_bytes_of(server.pid),
        driven=driven,
    )


def _require_stored(what: str, events: int, stored: int, workload: Workload) -> None:
    """wrk ends with a request under way on each connection: stored, its answer not counted."""
    if not events <= stored <= events + workload.connections * workload.events:
        raise BenchFailed(
            f"{what}: {events:,} events were answered with 200 and {stored:,} are in Kafka: "
            "no figure for that"
        )


def _told(window: Window) -> str:
    return (
        f"{window.workload:7} {window.server:20} {window.cpu_us:7.2f} µs an event, "
        f"{window.events / window.driven.seconds:9,.0f} events/s, "
        f"p99 {window.driven.p99_ms:6.1f} ms"
    )


if __name__ == "__main__":
    run_command(main, "bench.capture")
