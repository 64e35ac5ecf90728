"""How long after its 200 an event can be queried, and what that time is made of.

    whole stack ─▶ one event, until it is visible (warm-up)
                ─▶ events at a steady pace, each with the time of its 200 ─┐
    ClickHouse: count() often, uuids when it has grown ─▶ time visible ────┼▶ per event: its parts
    ledger, Dagster: which run carried it, and when that run began ────────┘

Nothing is sent faster because an answer was slow: the pace is the clock's. Every event that was
answered 200 must become visible, or there is no figure.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import click
from clickhouse_connect.driver.client import Client

from assets.pipeline.clickhouse import connect
from bench import options
from bench.children import Deadline
from bench.errors import BenchFailed, run_command
from bench.figures import write_json
from bench.fill import make_records
from bench.latency_report import Delay, show, summary
from bench.parts import bench_settings, temporary_home
from local_stack.processes import Foreground, Service
from local_stack.stack import START_LIMIT_S, start_stack
from orchestration.ledger.batches import all_batches
from orchestration.ledger.connection import open_ledger
from orchestration.ledger.projects import create_project
from orchestration.settings import Settings
from orchestration.webserver import RunTimes, run_times

_LOOK_EVERY_S = 0.05
_ANSWER_LIMIT_S = 30.0
_VISIBLE_LIMIT_S = 120.0
_KINDS = 1_000


@dataclass(frozen=True)
class Seen:
    """An event's first sight in ClickHouse: when, and in which batch."""

    at: float
    batch_id: str


@click.command()
@click.option("--cadence", default="10s", show_default=True, help="TIDEMARK_CADENCE of the stack.")
@click.option(
    "--rate",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Events a second, one a request.",
)
@click.option(
    "--seconds",
    default=120.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long events are sent.",
)
@options.limit(600.0)
@options.json_file
def main(cadence: str, rate: float, seconds: float, limit: float, json_file: Path | None) -> None:
    """Measure the time from an event's 200 until it can be queried, on the whole stack."""
    facts, console = options.introduced()
    deadline = Deadline(limit)
    with temporary_home() as home:
        settings = bench_settings(home, cadence=cadence)
        with Foreground(settings.home, "a benchmark") as foreground:

            def wait(service: Service) -> None:
                foreground.wait_ready(service, min(START_LIMIT_S, deadline.left_s()))

            start_stack(settings, foreground.launch, wait)
            console.print("the stack is up; one event goes ahead", highlight=False)
            sender = Sender(settings)
            watcher = Watcher(settings)
            sender.send(1, rate)
            watcher.wait_for(sender.answered, deadline)
            count = max(1, round(rate * seconds))
            console.print(f"{count:,} events, {rate:g} a second", highlight=False)
            first = len(sender.answered)
            thread = threading.Thread(target=sender.send, args=(count, rate), daemon=True)
            thread.start()
            while thread.is_alive():
                deadline.left_s()
                watcher.look()
                time.sleep(_LOOK_EVERY_S)
            watcher.wait_for(sender.answered, deadline)
            delays = _delays(settings, dict(list(sender.answered.items())[first:]), watcher.seen)
    show(console, delays, cadence)
    if sender.refused:
        console.print(f"[red]{sender.refused:,} requests were not answered 200")
    write_json(
        json_file,
        {
            "benchmark": "latency",
            "machine": facts,
            "settings": {"cadence": cadence, "rate": rate, "seconds": seconds},
            "refused": sender.refused,
            "summary": summary(delays),
            "events": [vars(delay) for delay in delays],
        },
    )


class Sender:
    """Posts events one by one over a connection that stays open; notes when each 200 came."""

    def __init__(self, settings: Settings) -> None:
        ledger = open_ledger(settings.ledger)
        self._token = create_project(ledger, "benchmark").token
        ledger.dispose()
        self._port = settings.capture_port
        # As varied as in the other benchmark: the properties of ready-made records.
        self._properties = [value.partition(b"\n")[2] for _, value, _ in make_records(_KINDS)]
        self.answered: dict[str, float] = {}
        self.refused = 0

    def send(self, count: int, rate: float) -> None:
        """Send so many events, so many a second."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_LIMIT_S)
        begun = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            name = str(uuid.uuid4())
            try:
                connection.request(
                    "POST",
                    "/capture",
                    self._body(name, self._properties[number % _KINDS]),
                    {"Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self.refused += 1
                connection.close()
                continue
            if answer.status == 200:
                self.answered[name] = time.time()
            else:
                self.refused += 1
        connection.close()

    def _body(self, name: str, properties: bytes) -> bytes:
        head = json.dumps(
            {
                "api_key": self._token,
                "uuid": name,
                "event": "$pageview",
                "distinct_id": f"visitor-{name[:3]}",
            }
        ).encode()
        return b'%s,"properties":%s}' % (head[:-1], properties)


class Watcher:
    """Looks for new rows: `count()`, which the table's metadata answer, and uuids when it grew."""

    def __init__(self, settings: Settings) -> None:
        self._client: Client = connect(
            settings.clickhouse_address, settings.clickhouse_user, settings.clickhouse_password
        )
        self._table = f"{settings.clickhouse_database}.events"
        self.seen: dict[str, Seen] = {}

    def look(self) -> None:
        """Note every event that is visible now and was not before."""
        count = int(str(self._client.command(f"SELECT count() FROM {self._table}")))
        at = time.time()
        if count == len(self.seen):
            return
        rows = self._client.query(
            f"SELECT toString(uuid), _batch_id FROM {self._table} "
            "WHERE _batch_id NOT IN {known:Array(String)}",
            parameters={"known": sorted({seen.batch_id for seen in self.seen.values()})},
        ).result_rows
        for name, batch_id in rows:
            self.seen.setdefault(name, Seen(at, batch_id))

    def wait_for(self, answered: dict[str, float], deadline: Deadline) -> None:
        """Look until every one of them is visible."""
        end = time.monotonic() + _VISIBLE_LIMIT_S
        while missing := answered.keys() - self.seen.keys():
            deadline.left_s()
            if time.monotonic() > end:
                raise BenchFailed(
                    f"{len(missing):,} of {len(answered):,} events that were answered 200 are not "
                    f"visible {_VISIBLE_LIMIT_S:.0f} s later"
                )
            time.sleep(_LOOK_EVERY_S)
            self.look()
        if not answered:
            raise BenchFailed("the capture API answered no request with 200")


def _delays(settings: Settings, answered: dict[str, float], seen: dict[str, Seen]) -> list[Delay]:
    """The parts of every event's delay; they add up to the whole."""
    ledger = open_ledger(settings.ledger)
    batches = {batch.batch_id: batch for batch in all_batches(ledger, settings.topic)}
    ledger.dispose()
    times: dict[str, RunTimes] = {}
    delays = []
    for name, at in answered.items():
        batch = batches[seen[name].batch_id]
        if batch.run_id not in times:
            times[batch.run_id] = run_times(settings.dagster_address, batch.run_id)
        run = times[batch.run_id]
        # Each point lies at or after the one before: an event may come while a run is under way.
        points: list[float] = [at]
        staged_at = (batch.staged_at or batch.planned_at) / 1e6
        for moment in (run.created, run.started, batch.planned_at / 1e6, staged_at):
            points.append(max(points[-1], moment))
        points.append(max(points[-1], seen[name].at))
        steps = [after - before for before, after in itertools.pairwise(points)]
        delays.append(Delay(batch.run_id, points[-1] - at, *steps))
    return delays


if __name__ == "__main__":
    run_command(main, "bench.latency")
